//! The `drydock` command; everything it does is in the library, where tests reach it.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    drydock::cli::main().await
}
