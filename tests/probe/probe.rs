//! Stands in for the worker in tests. Its first argument says what it does; `inspect` tries everything that a
//! container must not be able to do and appends what came of it to the events file, one JSON object a line:
//! `{"fact": "socket 2", "value": "EPERM"}`.

mod devices;
mod doom;
mod greed;
mod inspect;
mod leaks;
mod output;
mod rights;
mod syscalls;
mod worker;

use std::fs::{File, OpenOptions};
use std::io::{Error, Write};
use std::process::{Command, ExitCode, abort};
use std::time::Duration;

pub(crate) const EVENTS: &str = "/job/events.jsonl";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run", spec] => return worker::work(spec),
        ["inspect", host_socket] => inspect::inspect(host_socket),
        ["look-for-gpus", ref paths @ ..] => devices::look_for_gpus(paths),
        ["exit", code] => return code.parse::<u8>().map_or(ExitCode::FAILURE, ExitCode::from),
        ["raise", signal] => raise(signal.parse().unwrap_or(0)),
        ["eat-memory"] => eat_memory(),
        ["hold-memory", mib] => hold_memory(mib.parse().unwrap_or(0)),
        ["eat-memory-at-once"] => devour(),
        ["child-eats-memory"] => child_eats_memory(),
        ["eat-unmapped-memory"] => greed::eat_unmapped_memory(),
        ["fork-bomb"] => greed::fork_bomb(),
        ["spin"] => greed::spin(),
        ["take-watches"] => {
            greed::take_watches();
            wait_for_ever(libc::SIG_DFL);
        }
        ["take-a-watch"] => greed::take_a_watch(),
        ["make-outputs"] => output::make_all(),
        ["call-32-bit"] => return ExitCode::from(syscalls::call_32_bit()),
        ["call-x32"] => return ExitCode::from(syscalls::call_x32()),
        ["fill", path] => fill(path),
        ["fill-with-files", folder] => greed::fill_with_files(folder),
        ["ignore-term"] => wait_for_ever(libc::SIG_IGN),
        ["wait"] => wait_for_ever(libc::SIG_DFL),
        ["die-saying", words, after] => return greed::die_saying(words, after.parse().unwrap_or(0)),
        ["say", words, times] => return say(words, times.parse().unwrap_or(0)),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

/// Time in which an engine notices things.
pub(crate) const NOTICE: Duration = Duration::from_millis(500);

/// Appends a fact to the events file.
pub(crate) fn tell(fact: &str, value: &str) {
    let line = format!("{{\"fact\":\"{}\",\"value\":\"{}\"}}\n", escape(fact), escape(value));
    let appended = OpenOptions::new().append(true).open(EVENTS).and_then(|mut file| file.write_all(line.as_bytes()));
    if appended.is_err() {
        // Nothing can be told any more; the missing facts and the exit code say so.
        abort();
    }
}

fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect()
}

/// `ok`, or the error's number by name where it is one of those that are looked for.
pub(crate) fn outcome<T>(result: std::io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error_name(&error),
    }
}

pub(crate) fn error_name(error: &Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::EACCES) => "EACCES".to_owned(),
        Some(libc::EROFS) => "EROFS".to_owned(),
        Some(libc::EBUSY) => "EBUSY".to_owned(),
        Some(libc::ENOSYS) => "ENOSYS".to_owned(),
        Some(libc::ENOSPC) => "ENOSPC".to_owned(),
        Some(libc::ENOENT) => "ENOENT".to_owned(),
        Some(libc::EXDEV) => "EXDEV".to_owned(),
        Some(libc::EAGAIN) => "EAGAIN".to_owned(),
        Some(libc::EFBIG) => "EFBIG".to_owned(),
        Some(libc::EMFILE) => "EMFILE".to_owned(),
        Some(libc::ECONNREFUSED) => "ECONNREFUSED".to_owned(),
        Some(libc::ENXIO) => "ENXIO".to_owned(),
        _ => error.to_string(),
    }
}

fn raise(signal: i32) {
    // SAFETY: raises a signal in this process, whose end it is meant to be.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn eat_memory() {
    // The engine begins to watch a container's memory only a moment after its start; a kill before goes unseen.
    std::thread::sleep(NOTICE);
    devour();
}

/// Takes so much, if it may.
fn hold_memory(mib: usize) {
    std::thread::sleep(NOTICE);
    drop(std::hint::black_box(vec![1_u8; mib << 20]));
}

fn devour() {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![1_u8; 4 << 20]);
    }
}

/// Ends well itself, as a program does that starts another and ignores how that ended.
fn child_eats_memory() {
    let child = Command::new("/drydock-worker").arg("eat-memory").status();
    // And it must have heard of the kill before the container is gone.
    std::thread::sleep(NOTICE);
    tell("child", &child.map_or_else(|error| error_name(&error), |status| status.to_string()));
}

/// Writes to a file until nothing more fits.
fn fill(path: &str) {
    let block = vec![1_u8; 1 << 20];
    let filled = File::create(path).and_then(|mut file| {
        loop {
            file.write_all(&block)?;
        }
    });
    let () = filled.unwrap_or_else(|error: Error| tell("fill", &error_name(&error)));
}

fn wait_for_ever(on_term: libc::sighandler_t) {
    // SAFETY: sets a signal's disposition and sleeps; no handler of ours runs.
    unsafe { libc::signal(libc::SIGTERM, on_term) };
    tell("ready", "yes");
    loop {
        // SAFETY: only sleeps.
        unsafe { libc::pause() };
    }
}

fn say(words: &str, times: u32) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let said = (0..times).try_for_each(|number| writeln!(out, "{words} {number}"));
    said.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
