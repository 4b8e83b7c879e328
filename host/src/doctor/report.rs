//! The report, as text.

use std::fmt;
use std::path::PathBuf;

use super::{Chosen, DriverReport, GpuReport};
use crate::comm::nccl::NcclVersion;
use crate::device::{DeviceProperties, ptx};

/// What was found; its text is what `doctor` prints.
#[derive(Clone, Debug)]
pub struct Report {
    /// What commands run on, or why there is nothing.
    pub device: Result<Chosen, String>,
    /// The driver, if there is one, or why it does not start.
    pub driver: Result<Option<DriverReport>, String>,
    /// All GPUs, by ordinal.
    pub gpus: Vec<GpuReport>,
    /// NCCL and the file it was loaded from, or why it was not.
    pub nccl: Result<(NcclVersion, Option<PathBuf>), String>,
    /// Architectures of the embedded kernels.
    pub ptx: Vec<&'static str>,
}

impl Report {
    /// Whether commands can run, on whatever device was asked for.
    pub fn is_healthy(&self) -> bool {
        self.device.is_ok()
    }

    /// What the findings mean for whoever runs commands here.
    fn consequences(&self) -> Vec<String> {
        let mut all = Vec::new();
        match &self.device {
            Ok(Chosen { is_gpu: true, .. }) => all.push(
                "commands run on the GPU above; `--device cpu` runs the same kernels on the CPU"
                    .to_owned(),
            ),
            Ok(_) => all.extend([
                "commands run on the CPU: every kernel works there, slowly, with its accesses \
                 checked"
                    .to_owned(),
                "quick here: `host kv-validate`, `host generate --shape tiny --prompt hello`, `host \
                 compare moe_topk`"
                    .to_owned(),
            ]),
            Err(_) => all.push("commands stop with the error above".to_owned()),
        }
        if self.ptx.is_empty() {
            all.push(format!("no GPU can be used by this build: {}", ptx::HOW_TO_EMBED));
        }
        match self.gpus.len() {
            0 => {
                all.push("several ranks run on the CPU only: each gets a share of its cores".into())
            }
            1 => all.push(
                "one GPU: pages can lie in its memory and in the host's, but on no peer; several \
                 ranks run on the CPU"
                    .to_owned(),
            ),
            _ => self.consequences_for_several_gpus(&mut all),
        }
        all
    }

    fn consequences_for_several_gpus(&self, all: &mut Vec<String>) {
        let apart: Vec<String> = self
            .links()
            .filter(|(_, _, link)| !matches!(link, Ok(link) if link.access))
            .map(|(from, to, _)| format!("{from} to {to}"))
            .collect();
        all.push(match apart.as_slice() {
            [] => "pages can lie on any GPU: all reach each other's memory".to_owned(),
            pairs => format!(
                "pages cannot lie on a peer where access is missing: GPU {}",
                pairs.join(", ")
            ),
        });
        all.push(match self.nccl {
            Ok(_) => "collectives between GPUs go through NCCL".to_owned(),
            Err(_) => "collectives between GPUs do not work before NCCL is installed".to_owned(),
        });
    }

    fn links(
        &self,
    ) -> impl Iterator<Item = (usize, usize, &Result<crate::device::PeerLink, String>)> {
        self.gpus.iter().enumerate().flat_map(|(from, gpu)| {
            let links = gpu.links.iter().enumerate();
            links.filter_map(move |(to, link)| Some((from, to, link.as_ref()?)))
        })
    }
}

/// A line with its name in front, or with room for it.
fn line(f: &mut fmt::Formatter<'_>, name: &str, text: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{name:<9} {text}")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Ok(Chosen { line, .. }) => writeln!(f, "{line}\n")?,
            Err(error) => writeln!(f, "device: none: {error}\n")?,
        }
        match &self.driver {
            Ok(None) => line(f, "driver", "none found")?,
            Ok(Some(DriverReport { cuda: (major, minor), module })) => {
                let module = module.as_ref().map(|version| format!("{version}, "));
                let module = module.unwrap_or_default();
                line(f, "driver", format_args!("{module}supports CUDA {major}.{minor}"))?;
            }
            Err(error) => line(f, "driver", error)?,
        }
        if self.gpus.is_empty() {
            line(f, "GPUs", "none")?;
        }
        for (ordinal, gpu) in self.gpus.iter().enumerate() {
            let name = format!("GPU {ordinal}");
            match &gpu.properties {
                Ok(properties) => line(f, &name, Details(properties))?,
                Err(error) => line(f, &name, error)?,
            }
        }
        for (i, (from, to, link)) in self.links().enumerate() {
            let name = if i == 0 { "links" } else { "" };
            match link {
                Ok(link) => line(f, name, format_args!("{from} to {to}: {link}"))?,
                Err(error) => line(f, name, format_args!("{from} to {to}: {error}"))?,
            }
        }
        match &self.nccl {
            Ok((version, Some(path))) => {
                line(f, "NCCL", format_args!("{version}, {}", path.display()))?;
            }
            Ok((version, None)) => line(f, "NCCL", version)?,
            Err(_) if self.gpus.is_empty() => {
                line(f, "NCCL", "none found; only collectives between GPUs need it")?;
            }
            Err(error) => line(f, "NCCL", error)?,
        }
        match self.ptx.as_slice() {
            [] => line(f, "kernels", "no PTX embedded")?,
            archs => line(f, "kernels", format_args!("PTX embedded for {}", archs.join(", ")))?,
        }
        writeln!(f, "\nwhat follows:")?;
        self.consequences().iter().try_for_each(|consequence| writeln!(f, "- {consequence}"))
    }
}

/// A GPU's properties with what only `doctor` tells.
struct Details<'a>(&'a DeviceProperties);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        if let Some(memory) = self.0.memory {
            write!(f, "; {:.0} GiB free", memory.free as f64 / (1u64 << 30) as f64)?;
        }
        if let Some(l2_bytes) = self.0.l2_bytes {
            write!(f, ", L2 {:.0} MiB", l2_bytes as f64 / (1u64 << 20) as f64)?;
        }
        Ok(())
    }
}
