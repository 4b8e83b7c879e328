//! The command line.
//!
//! Exit codes: 0, all is well; 1, the command ran and found what must not be; 2, it could not run
//! as asked (bad arguments or input, no such device).

mod ceilings;
mod compare;
mod doctor;
mod expectations;
mod far_grid;
mod generate;
mod kv_validate;
mod launch;
mod list;
mod model_source;
mod numbers;
mod output;
mod profile;
mod progress;
mod report;
mod run;
mod sampling;
mod selection;
mod serve;
mod table;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::Result as Parsed;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use farpage::comm::set_timeout;
use farpage::device::DeviceChoice;
use farpage::harness::in_one_line;

/// GPU kernels in Rust for LLM inference whose KV cache and experts live on other GPUs.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// What to run on; `auto` takes the first GPU, else the CPU, and says why.
    #[arg(long, global = true, value_enum, default_value_t)]
    device: DeviceArgument,

    /// Longest wait of a kernel for another rank; after it the ranks that wait end with an error.
    #[arg(
        long,
        global = true,
        value_name = "MS",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..=3_600_000)
    )]
    timeout_ms: u32,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints what this machine and this build have, and what follows from it.
    Doctor,
    /// Shows the pairs, their shapes, and what can run here.
    List(list::ListArguments),
    /// Measures pairs, and keeps what was found.
    Run(run::RunArguments),
    /// Shows the baseline of pairs beside the optimized side, measured in turns.
    Compare(compare::CompareArguments),
    /// Checks both sides of pairs with fresh inputs, and that a corrupted input is noticed.
    Verify(verify::VerifyArguments),
    /// Measures the most that this machine's memories and links reach.
    Ceilings(ceilings::CeilingsArguments),
    /// Measures pulled pages, travelling queries and the planner's choice over a grid of batches.
    FarGrid(far_grid::FarGridArguments),
    /// Prints the tokens of a model as they come.
    Generate(generate::GenerateArguments),
    /// Holds runs against what their machine is expected to reach, or moves that.
    Expectations(expectations::Arguments),
    /// Replays requests through the KV pool and the kernels, and checks every answer.
    KvValidate(Box<kv_validate::KvValidateArguments>),
    /// Serves many requests with one policy, and says how long they waited.
    Serve(Box<serve::ServeArguments>),
    /// Launches one kernel by its name, for profilers and sanitizers; without a name, shows all.
    Launch(launch::LaunchArguments),
    /// Prints or runs the profilers' commands for a kernel.
    Profile(profile::ProfileArguments),
    /// Writes a run's report, or refreshes README's result table.
    Report(report::Arguments),
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum DeviceArgument {
    #[default]
    Auto,
    Cuda,
    Cpu,
}

impl From<DeviceArgument> for DeviceChoice {
    fn from(argument: DeviceArgument) -> Self {
        match argument {
            DeviceArgument::Auto => Self::Auto,
            DeviceArgument::Cuda => Self::Cuda,
            DeviceArgument::Cpu => Self::Cpu,
        }
    }
}

/// The exit code of a command that found what must not be.
const FOUND_A_VIOLATION: u8 = 1;
/// The exit code of a command that could not run as asked.
const COULD_NOT_RUN: u8 = 2;

/// What a command that ran came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// All is well.
    Passed,
    /// Something is not as it must be; the command has said what.
    Violation,
}

/// Runs the command of this process's arguments.
pub fn run() -> ExitCode {
    output::end_where_output_fails();
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        // Also `--help` and `--version`, whose code is 0; of bad arguments it is 2.
        Err(usage) => usage.exit(),
    };
    set_timeout(Duration::from_millis(cli.timeout_ms.into()));
    let choice = cli.device.into();
    let outcome = match cli.command {
        Command::Doctor => doctor::run(choice),
        Command::List(arguments) => list::run(choice, &arguments),
        Command::Run(arguments) => run::run(choice, &arguments),
        Command::Compare(arguments) => compare::run(choice, &arguments),
        Command::Verify(arguments) => verify::run(choice, &arguments),
        Command::Ceilings(arguments) => ceilings::run(choice, &arguments),
        Command::FarGrid(arguments) => far_grid::run(choice, &arguments),
        Command::Generate(arguments) => generate::run(choice, &arguments),
        Command::Expectations(arguments) => expectations::run(choice, arguments),
        Command::KvValidate(arguments) => kv_validate::run(choice, *arguments),
        Command::Serve(arguments) => serve::run(choice, &arguments),
        Command::Launch(arguments) => launch::run(choice, &arguments),
        Command::Profile(arguments) => profile::run(choice, &arguments),
        Command::Report(arguments) => report::run(arguments),
    };
    match outcome {
        Ok(Outcome::Passed) => ExitCode::SUCCESS,
        Ok(Outcome::Violation) => ExitCode::from(FOUND_A_VIOLATION),
        Err(error) if output::reader_has_gone(&error) => ExitCode::from(output::READER_HAS_GONE),
        Err(error) => {
            eprintln!("error: {}", in_one_line(&error));
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

impl Cli {
    /// The arguments of a command line. A negative number is a value, so that it is refused by the
    /// name of its option.
    fn read(arguments: impl IntoIterator<Item: Into<OsString> + Clone>) -> Parsed<Self> {
        let command = takes_negative_numbers(Self::command());
        Self::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }
}

fn takes_negative_numbers(command: clap::Command) -> clap::Command {
    let takes_them = |arg: Arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(takes_them).mut_subcommands(takes_negative_numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_device_may_stand_on_either_side_of_the_command() {
        for arguments in
            [["host", "--device", "cpu", "doctor"], ["host", "doctor", "--device", "cpu"]]
        {
            let cli = Cli::read(arguments).unwrap();
            assert_eq!(DeviceChoice::from(cli.device), DeviceChoice::Cpu);
        }
    }

    #[test]
    fn the_timeout_is_ten_seconds_unless_given_and_never_none() {
        let timeout = |arguments: &'static [&str]| Cli::read(arguments).map(|cli| cli.timeout_ms);
        assert_eq!(timeout(&["host", "list"]).unwrap(), 10_000);
        assert_eq!(timeout(&["host", "list", "--timeout-ms", "250"]).unwrap(), 250);
        assert_eq!(timeout(&["host", "--timeout-ms", "0", "list"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn bad_arguments_exit_with_2() {
        for arguments in
            [&["host"][..], &["host", "nonsense"], &["host", "doctor", "--device", "tpu"]]
        {
            assert_eq!(Cli::read(arguments).unwrap_err().exit_code(), 2);
        }
        assert_eq!(Cli::read(["host", "--help"]).unwrap_err().exit_code(), 0);
    }
}
