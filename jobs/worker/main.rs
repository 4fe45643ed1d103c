//! `drydock-worker`: the command line of the worker.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use drydock_spec::contract::{EXIT_FAILED, EXIT_FINISHED, EXIT_MISUSED};
use drydock_worker::attempt::{Purpose, STACK_BYTES, carry_out, read_spec, start_threads};
use drydock_worker::ending::Ending;
use drydock_worker::logits::logits;
use drydock_worker::merge::merge;
use drydock_worker::process;
use drydock_worker::save::shards::SavedAs;

const USAGE: &str = "\
usage: drydock-worker run SPEC.json [--device cpu|cuda]
       drydock-worker preview SPEC.json
       drydock-worker logits --model DIR [--adapter DIR] --ids 1,2,3 --out FILE.safetensors
       drydock-worker merge --model DIR [--adapter DIR] [--dtype f32|f16|bf16] --out DIR
       drydock-worker selfcheck [--device cuda | --list-devices]
       drydock-worker --version";

fn main() -> ExitCode {
    process::set_up();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let code = match arguments[..] {
        ["run", spec] => attempt(spec, Purpose::Run, None),
        ["run", spec, "--device", "cpu"] => attempt(spec, Purpose::Run, Some(0)),
        ["run", spec, "--device", "cuda"] => attempt(spec, Purpose::Run, Some(1)),
        ["preview", spec] => attempt(spec, Purpose::Preview, None),
        ["logits", ref options @ ..] => write_logits(options),
        ["merge", ref options @ ..] => write_merged(options),
        ["selfcheck", ref options @ ..] => selfcheck(options),
        ["--version"] => writeln!(std::io::stdout(), "{}", drydock_worker::NAME_AND_VERSION)
            .map(|()| EXIT_FINISHED)
            .context("cannot write to the standard output"),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    let code = code.unwrap_or_else(|error| {
        // There is no one left to tell if this fails.
        let _ = writeln!(std::io::stderr(), "drydock-worker: {error:#}");
        EXIT_MISUSED
    });
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// `gpus` are those of a run by hand, whatever the spec says.
fn attempt(spec: &str, purpose: Purpose, gpus: Option<u32>) -> anyhow::Result<i32> {
    let mut attempt = read_spec(Path::new(spec))?;
    attempt.gpus = gpus.unwrap_or(attempt.gpus);
    carry_out(attempt, purpose)
}

/// For comparing with other software; reports nothing, complains on the standard error.
fn write_logits(options: &[&str]) -> anyhow::Result<i32> {
    let (mut model, mut adapter, mut ids, mut out) = (None, None, None, None);
    for pair in options.chunks(2) {
        match *pair {
            ["--model", value] => model = Some(PathBuf::from(value)),
            ["--adapter", value] => adapter = Some(PathBuf::from(value)),
            ["--ids", value] => {
                let parsed: Result<Vec<u32>, _> = value.split(',').map(|id| id.trim().parse()).collect();
                ids = Some(parsed.with_context(|| format!("--ids {value}: numbers and commas are expected"))?);
            }
            ["--out", value] => out = Some(PathBuf::from(value)),
            _ => bail!("{USAGE}"),
        }
    }
    let (Some(model), Some(ids), Some(out)) = (model, ids, out) else { bail!("{USAGE}") };
    by_hand(move || logits(&model, adapter.as_deref(), &ids, &out))
}

/// For using elsewhere what was trained here; reports nothing, either.
fn write_merged(options: &[&str]) -> anyhow::Result<i32> {
    let (mut model, mut adapter, mut dtype, mut out) = (None, None, None, None);
    for pair in options.chunks(2) {
        match *pair {
            ["--model", value] => model = Some(PathBuf::from(value)),
            ["--adapter", value] => adapter = Some(PathBuf::from(value)),
            ["--dtype", "f32"] => dtype = Some(SavedAs::F32),
            ["--dtype", "f16"] => dtype = Some(SavedAs::F16),
            ["--dtype", "bf16"] => dtype = Some(SavedAs::Bf16),
            ["--out", value] => out = Some(PathBuf::from(value)),
            _ => bail!("{USAGE}"),
        }
    }
    let (Some(model), Some(out)) = (model, out) else { bail!("{USAGE}") };
    by_hand(move || merge(&model, adapter.as_deref(), dtype, &out))
}

/// Whether a GPU computes what the CPU computes: what a person with a new GPU runs first.
#[cfg(feature = "cuda")]
fn selfcheck(options: &[&str]) -> anyhow::Result<i32> {
    use drydock_worker::cuda::selfcheck;
    let mut out = std::io::stdout();
    let is_well = match *options {
        [] | ["--device", "cuda"] => selfcheck::selfcheck(&mut out)?,
        ["--list-devices"] => selfcheck::list_devices(&mut out)?,
        _ => bail!("{USAGE}"),
    };
    Ok(if is_well { EXIT_FINISHED } else { EXIT_FAILED })
}

#[cfg(not(feature = "cuda"))]
fn selfcheck(_: &[&str]) -> anyhow::Result<i32> {
    bail!("this worker is built without CUDA, so that there is nothing to check: `make worker-cuda` builds one with it")
}

/// Does something on all threads, and complains on the standard error.
fn by_hand(work: impl FnOnce() -> Result<(), Ending> + Send + 'static) -> anyhow::Result<i32> {
    start_threads(std::thread::available_parallelism().map_or(1, |threads| threads.get() as u32))?;
    let work = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work).context("cannot start a thread")?;
    match work.join() {
        Ok(Ok(())) => Ok(EXIT_FINISHED),
        Ok(Err(Ending::Failed(failure))) => bail!("{failure}; hint: {}", failure.hint),
        Ok(Err(Ending::Stopped)) | Err(_) => Ok(EXIT_FAILED),
    }
}
