//! Tensors of a folder in the safetensors format: one file, or several by an index.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};

use super::{Part, WeightSource};
use crate::device::MappedFile;
use crate::model::ModelError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes that say how long the header is.
const HEADER_LEN_BYTES: usize = 8;

/// Elements that one thread converts in a row.
const CONVERTED_AT_ONCE: usize = 1 << 16;

/// A checkpoint's files, mapped, their headers read and checked.
pub struct Checkpoint {
    shards: Vec<Shard>,
    /// In which shard a tensor is.
    shard_of: HashMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    file: MappedFile,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data_start: usize,
}

impl Shard {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let file = MappedFile::open(path).map_err(|source| ModelError::file(path, source))?;
        // It also checks that the tensors fill the file, one after the other.
        let (header_len, metadata) = SafeTensors::read_metadata(&file).map_err(|error| {
            truncation(path, &file).unwrap_or_else(|| ModelError::format(path, error))
        })?;
        let data_start = HEADER_LEN_BYTES + header_len;
        Ok(Self { path: path.to_owned(), file, metadata, data_start })
    }
}

/// The first tensor whose bytes a file does not hold, if its header is whole.
fn truncation(path: &Path, file: &[u8]) -> Option<ModelError> {
    let header_len = u64::from_le_bytes(file.first_chunk().copied()?) as usize;
    let header = file.get(HEADER_LEN_BYTES..HEADER_LEN_BYTES.checked_add(header_len)?)?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let num_bytes = (file.len() - HEADER_LEN_BYTES - header_len) as u64;
    let ends = header.into_iter().filter_map(|(tensor, info)| {
        let end = info.get("data_offsets")?.get(1)?.as_u64()?;
        (end > num_bytes).then_some((end, tensor))
    });
    let (end, tensor) = ends.min()?;
    let needed = format!("bytes up to {end} of {}", path.display());
    Some(ModelError::tensor(&tensor, needed, format!("a file that ends at {num_bytes}")))
}

impl Checkpoint {
    /// Maps the files of a folder.
    ///
    /// # Errors
    /// Files that are missing, broken or truncated; an index that names a tensor which its file
    /// does not have.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let index = folder.join(INDEX);
        if !index.is_file() {
            let shard = Shard::open(&folder.join(SINGLE))?;
            let names = shard.metadata.tensors().into_keys();
            let shard_of = names.map(|tensor| (tensor, 0)).collect();
            return Ok(Self { shards: vec![shard], shard_of });
        }
        let weight_map = read_index(&index)?;
        let files: Vec<&String> = {
            let mut files: Vec<_> = weight_map.values().collect();
            files.sort_unstable();
            files.dedup();
            files
        };
        let shards = files
            .iter()
            .map(|file| Shard::open(&folder.join(file)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut shard_of = HashMap::new();
        for (tensor, file) in &weight_map {
            let shard = files.binary_search(&file).expect("it is one of the values");
            if shards[shard].metadata.info(tensor).is_none() {
                let needed = format!("to be in {file}, where {INDEX} has it");
                return Err(ModelError::tensor(tensor, needed, "nothing"));
            }
            shard_of.insert(tensor.clone(), shard);
        }
        Ok(Self { shards, shard_of })
    }

    /// Type and bytes of the whole tensor, which must have this shape.
    fn find(&self, part: &Part) -> Result<(Dtype, &[u8]), ModelError> {
        let Part { tensor, shape, .. } = part;
        let Some(&shard) = self.shard_of.get(tensor) else {
            return Err(ModelError::tensor(tensor, format!("shape {shape:?}"), "nothing"));
        };
        let shard = &self.shards[shard];
        let info = shard.metadata.info(tensor).expect("it was found when the shard was opened");
        if info.shape != *shape {
            let got = format!("{:?} in {}", info.shape, shard.path.display());
            return Err(ModelError::tensor(tensor, format!("shape {shape:?}"), got));
        }
        if !matches!(info.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            let got = format!("{:?} in {}", info.dtype, shard.path.display());
            return Err(ModelError::tensor(tensor, "type BF16, F16 or F32", got));
        }
        let (start, end) = info.data_offsets;
        Ok((info.dtype, &shard.file[shard.data_start + start..shard.data_start + end]))
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let json = fs::read_to_string(path).map_err(|source| ModelError::file(path, source))?;
    let index: Index =
        serde_json::from_str(&json).map_err(|error| ModelError::format(path, error))?;
    let is_beside = |file: &str| Path::new(file).file_name() == Some(file.as_ref());
    match index.weight_map.values().find(|file| !is_beside(file)) {
        Some(file) => {
            Err(ModelError::format(path, format!("weight_map: needs files beside it, got {file}")))
        }
        None => Ok(index.weight_map),
    }
}

impl WeightSource for Checkpoint {
    fn check(&self, part: &Part) -> Result<(), ModelError> {
        self.find(part).map(|_| ())
    }

    fn check_complete(&self, parts: &[Part]) -> Result<(), ModelError> {
        let known: HashSet<&str> = parts.iter().map(|part| part.tensor.as_str()).collect();
        // Old checkpoints store the angles too; and heads that are the embedding are stored twice.
        let is_implied =
            |tensor: &str| tensor.ends_with("rotary_emb.inv_freq") || tensor == "lm_head.weight";
        let unknown = |tensor: &&String| !known.contains(tensor.as_str()) && !is_implied(tensor);
        match self.shard_of.keys().filter(unknown).min() {
            Some(tensor) => {
                Err(ModelError::tensor(tensor, "to be one that config.json asks for", "another"))
            }
            None => Ok(()),
        }
    }

    fn read(&self, part: &Part, start: usize, values: &mut [bf16]) -> Result<(), ModelError> {
        let (dtype, bytes) = self.find(part)?;
        let mut values = values;
        for run in part.runs(start, values.len()) {
            let (of_run, rest) = values.split_at_mut(run.len());
            convert(dtype, bytes, run.start, of_run);
            values = rest;
        }
        Ok(())
    }
}

/// Elements of a tensor's bytes, from `first` on.
fn convert(dtype: Dtype, bytes: &[u8], first: usize, values: &mut [bf16]) {
    let size = dtype.bitsize() / 8;
    let bytes = &bytes[first * size..(first + values.len()) * size];
    if dtype == Dtype::BF16 {
        bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
        return;
    }
    let pieces = values.par_chunks_mut(CONVERTED_AT_ONCE);
    pieces.zip(bytes.par_chunks(CONVERTED_AT_ONCE * size)).for_each(|(values, bytes)| {
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size)) {
            *value = match *bytes {
                [a, b] => bf16::from_f32(f16::from_le_bytes([a, b]).to_f32()),
                [a, b, c, d] => bf16::from_f32(f32::from_le_bytes([a, b, c, d])),
                _ => unreachable!("elements of 2 or 4 bytes were checked"),
            };
        }
    });
}
