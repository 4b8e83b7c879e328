//! `host report`: what a run found, for people.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use farpage::harness::files::{read_results, run_folder};
use farpage::harness::report::{Report, refresh_readme};

use super::Outcome;

/// Of what to make a report.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A run's folder, which the report is written to; or one of several runs, for the last.
    #[arg(required_unless_present = "readme")]
    dir: Option<PathBuf>,

    /// Refreshes the result table of a file from the expectations, between its lines
    /// `<!-- results:begin -->` and `<!-- results:end -->`.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "README.md")]
    readme: Option<PathBuf>,

    /// Folder of the expectations that `--readme` takes.
    #[arg(long, default_value = "expectations")]
    folder: PathBuf,
}

pub fn run(arguments: Arguments) -> Result<Outcome> {
    if let Some(dir) = arguments.dir {
        let run = run_folder(&dir)?;
        for path in Report::of(&read_results(&run)?).write(&run)? {
            println!("wrote {}", path.display());
        }
    }
    if let Some(readme) = arguments.readme {
        let changed = refresh_readme(&readme, &arguments.folder)?;
        println!("{} {}", if changed { "wrote" } else { "up to date:" }, readme.display());
    }
    Ok(Outcome::Passed)
}
