//! Output that cannot be written.

use std::io::{self, ErrorKind};
use std::panic::{self, PanicHookInfo};
use std::process;

use super::COULD_NOT_RUN;

/// What a shell reports for a program that wrote to a pipe after its reader had gone.
pub const READER_HAS_GONE: u8 = 141;

/// How std begins the panic of a `print!` that failed.
const FAILED_PRINT: &str = "failed printing to stdout: ";

/// Makes a `print!` that fails the end of the program, where it would be a panic: without a word
/// where the reader has gone, as that of `host list | head` does, else with the reason.
pub fn end_where_output_fails() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| match failed_print(info) {
        Some(reason) if reason.starts_with("Broken pipe") => process::exit(READER_HAS_GONE.into()),
        Some(reason) => {
            eprintln!("error: standard output cannot be written: {reason}");
            process::exit(COULD_NOT_RUN.into());
        }
        None => usual(info),
    }));
}

fn failed_print<'a>(info: &'a PanicHookInfo<'_>) -> Option<&'a str> {
    info.payload_as_str()?.strip_prefix(FAILED_PRINT)
}

/// Whether a command ended because nobody reads its output any more.
pub fn reader_has_gone(error: &anyhow::Error) -> bool {
    let is_broken_pipe = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    error.root_cause().downcast_ref().is_some_and(is_broken_pipe)
}
