//! How the examples and the bench of the CUDA kernels fail.

use std::error::Error;
use std::process::ExitCode;

/// The exit code of a run, with its error and the error's causes on stderr. A reader of the output that
/// has had enough, such as `head`, is no error.
pub(crate) fn exit(result: Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    result.unwrap_or_else(|error| {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        let mut told = error.to_string();
        eprintln!("error: {told}");
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // An error may have its cause in its own text.
            if !told.contains(&text) {
                eprintln!("  caused by: {text}");
                told = text;
            }
            cause = error.source();
        }
        ExitCode::FAILURE
    })
}
