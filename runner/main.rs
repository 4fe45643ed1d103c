//! The `drydock` command; everything it does is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    drydock::memory::share_arenas();
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    drydock::cli::main().await
}
