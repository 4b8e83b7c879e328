//! A model as commands name it: a folder, or a shape whose weights follow from a seed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use farpage::device::Stream;
use farpage::model::config::NamedShape;
use farpage::model::weights::{Checkpoint, LoadProgress, Seeded, WeightSource};
use farpage::model::{ModelConfig, Transformer};
use indicatif::{ProgressBar, ProgressStyle};

/// A model's parts, before its weights are loaded.
pub struct ModelSource {
    pub config: ModelConfig,
    pub weights: Box<dyn WeightSource + Sync>,
    /// Its folder, if it has one.
    pub folder: Option<PathBuf>,
    /// What people are told that it is.
    pub name: String,
}

/// A shape by its name.
pub fn shape(name: &str) -> Result<NamedShape, String> {
    NamedShape::of_name(name).ok_or_else(|| {
        let names = NamedShape::ALL.map(NamedShape::name).join(", ");
        format!("must be one of {names}")
    })
}

impl ModelSource {
    /// That of `--model`, or else of `--shape`.
    pub fn open(folder: Option<&Path>, shape: Option<NamedShape>, seed: u64) -> Result<Self> {
        if let Some(folder) = folder {
            ensure!(folder.is_dir(), "`--model` must be a folder, got `{}`", folder.display());
            return Ok(Self {
                config: ModelConfig::from_folder(folder)?,
                weights: Box::new(Checkpoint::open(folder)?),
                folder: Some(folder.to_owned()),
                name: folder.display().to_string(),
            });
        }
        let shape = shape.context("`--model` or `--shape` must be given")?;
        let config = shape.config();
        let weights = Box::new(Seeded::new(seed, config.num_layers()));
        let name = format!("{}, seeded", shape.name());
        Ok(Self { config, weights, folder: None, name })
    }

    /// Loads it for sequences of so many tokens, with a progress bar.
    pub fn load(&self, stream: &Arc<Stream>, num_max_positions: u32) -> Result<Transformer> {
        let style = ProgressStyle::with_template(
            "{bar:40} {bytes}/{total_bytes} of weights, {bytes_per_sec}, {eta} to go",
        )?;
        let bar = ProgressBar::new(0).with_style(style);
        let show = &mut |progress: LoadProgress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.loaded_bytes);
        };
        let model = self.load_showing(stream, num_max_positions, show);
        bar.finish_and_clear();
        model
    }

    /// As [`load`](Self::load), without a word.
    pub fn load_quietly(
        &self,
        stream: &Arc<Stream>,
        num_max_positions: u32,
    ) -> Result<Transformer> {
        self.load_showing(stream, num_max_positions, &mut |_| {})
    }

    fn load_showing(
        &self,
        stream: &Arc<Stream>,
        num_max_positions: u32,
        show: &mut dyn FnMut(LoadProgress),
    ) -> Result<Transformer> {
        let config = self.config.clone();
        Ok(Transformer::load(stream, config, &*self.weights, num_max_positions, show)?)
    }
}
