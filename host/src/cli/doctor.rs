//! `doctor`.

use std::io::{self, Write};

use anyhow::Context;
use farpage::device::DeviceChoice;
use farpage::doctor::Report;

use super::Outcome;

pub fn run(choice: DeviceChoice) -> anyhow::Result<Outcome> {
    let report = Report::gather(choice);
    write!(io::stdout(), "{report}").context("writing the report")?;
    Ok(if report.is_healthy() { Outcome::Passed } else { Outcome::Violation })
}
