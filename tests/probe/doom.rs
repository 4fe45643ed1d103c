//! Ways in which programs die of what surrounds them. Each does what a careless program does: it goes on as if nothing
//! could fail, and what its language's runtime prints is all that it says.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::Duration;

use crate::syscalls::checked;
use crate::{EVENTS, NOTICE};

/// What is left to do for who is still alive.
pub(crate) enum After {
    /// It was not deadly: everything goes on.
    GoOn,
    /// Leave with this exit code, and without a word.
    Leave(u8),
}

/// Dies in the way that `ending` names, if there is not room enough for it; `None` for an unknown ending. `about` is the
/// number or name that makes one such death differ from another.
pub(crate) fn meet(ending: &str, about: &str) -> Option<After> {
    let number: usize = about.parse().unwrap_or(3);
    match ending {
        "abort" => std::process::abort(),
        "overflow" => drop(std::hint::black_box(deep(number))),
        "outside-the-list" => drop(std::hint::black_box(vec![0_u8; number][std::hint::black_box(number + 4)])),
        "unaligned" => crate::raise(libc::SIGBUS),
        "unknown-instruction" => crate::raise(libc::SIGILL),
        "forbidden-call-kills" => crate::raise(libc::SIGSYS),
        "python" => return Some(After::Leave(python(about))),
        "quiet" => return Some(After::Leave(0)),
        "garbage" => garbage(about),
        "long-report" => long_report(number),
        "afterword" => afterword(about),
        "claim" => {
            claim(about);
            return Some(After::Leave(1));
        }
        "threads" => threads(number),
        "namespace" => drop(namespace().expect("cannot make a namespace")),
        "network" => drop(TcpStream::connect(("192.0.2.7", number as u16)).expect("cannot reach the tracker")),
        "input" => fs::write("/in/model/cache.json", about).expect("cannot keep the cache beside the model"),
        "locked" => drop(locked(about).expect("cannot read the settings")),
        "scratch" => fill("/tmp", number, "cannot write scratch data"),
        "output" => fill("/out", number, "cannot write the tensors"),
        "files" => files(number).expect("cannot create one more file"),
        "one-large-file" => grow(number),
        "child-eats" => child(about),
        "unmapped" => unmapped(number).expect("cannot keep the samples"),
        "link" => symlink("/etc/passwd", format!("/out/{about}")).expect("a link can be made"),
        "two-names" => two_names(about).expect("a file can have two names"),
        "wild-name" => drop(File::create(format!("/out/{about}\n\u{1b}[2J")).expect("a name can have anything in it")),
        _ => return None,
    }
    Some(After::GoOn)
}

/// Recurses until the stack is used up.
fn deep(number: usize) -> usize {
    let room = std::hint::black_box([number as u8; 4096]);
    if number == usize::MAX { 0 } else { deep(number + 1) + usize::from(room[number % 4096]) }
}

/// What Python prints of an exception that nobody caught, and the exit code that it leaves with.
fn python(key: &str) -> u8 {
    let n = key.len();
    let lines = [
        format!("step {n}"),
        "Traceback (most recent call last):".to_owned(),
        format!("  File \"/app/train.py\", line {}, in <module>", 70 + n),
        "    main()".to_owned(),
        format!("  File \"/app/train.py\", line {}, in load", 20 + n),
        "    value = row[name]".to_owned(),
        format!("KeyError: '{key}'"),
    ];
    // Who cannot print ends all the same.
    let _ = std::io::stderr().write_all((lines.join("\n") + "\n").as_bytes());
    3
}

fn say(line: &str) {
    let mut events = OpenOptions::new().append(true).open(EVENTS).expect("the events file can be appended to");
    events.write_all(line.as_bytes()).expect("it takes a line");
}

/// Lines that are no reports.
fn garbage(about: &str) {
    say(&format!("{{\"loss\": {about}\n").repeat(200));
    wait();
}

/// A line longer than any report.
fn long_report(length: usize) {
    say(&"{".repeat(length));
    wait();
}

/// Something to add to what was the last word.
fn afterword(about: &str) {
    let finished = "{\"elapsed_ms\":1,\"type\":\"finished\",\"steps\":1,\"tokens\":1,\"peak_rss_bytes\":1}";
    say(&format!("{finished}\n{{\"elapsed_ms\":2,\"type\":\"warning\",\"code\":\"late\",\"message\":\"{about}\"}}\n"));
    wait();
}

/// Time enough for anybody to notice.
fn wait() {
    std::thread::sleep(Duration::from_secs(30));
}

/// A failure that is not a worker's to say: it would be tried again.
fn claim(about: &str) {
    let failed =
        format!("\"type\":\"failed\",\"kind\":\"engine_lost\",\"message\":\"node {about} is gone\",\"hint\":\"x\"");
    say(&format!("{{\"elapsed_ms\":1,{failed}}}\n"));
}

/// So many threads; the library's own words when there are no more.
fn threads(count: usize) {
    for _ in 0..count {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
    }
}

fn namespace() -> io::Result<libc::c_int> {
    // SAFETY: no pointers.
    checked(unsafe { libc::unshare(libc::CLONE_NEWUTS) }.into())
}

/// A file that its owner has locked itself out of.
fn locked(name: &str) -> io::Result<File> {
    let path = format!("/out/{name}.toml");
    File::create(&path)?.set_permissions(fs::Permissions::from_mode(0o0))?;
    File::open(path)
}

/// So many files of a mebibyte.
fn fill(folder: &str, count: usize, otherwise: &str) {
    let block = vec![1_u8; 1 << 20];
    for number in 0..count {
        fs::write(format!("{folder}/part-{number}"), &block)
            .unwrap_or_else(|error| panic!("{otherwise} {folder}: {error}"));
    }
}

/// So many empty files.
fn files(count: usize) -> io::Result<()> {
    (0..count).try_for_each(|number| File::create(format!("/out/row-{number}")).map(drop))
}

/// Files of a mebibyte that exist in memory only, so many.
fn unmapped(count: usize) -> io::Result<()> {
    std::thread::sleep(NOTICE);
    let block = vec![1_u8; 1 << 20];
    let mut kept = Vec::new();
    for _ in 0..count {
        let mut file = crate::greed::file_in_memory();
        file.write_all(&block)?;
        kept.push(file);
    }
    Ok(())
}

/// A file without content of so many mebibytes.
fn grow(mib: usize) {
    let file = File::create("/out/model.bin").expect("a file can be created");
    // What the kernel does about it ends the program.
    file.set_len((mib as u64) << 20).expect("a file can be as large");
}

/// Another process that takes so many mebibytes; this one notices if that was too much, says so, and goes.
fn child(mib: &str) {
    let child = Command::new("/drydock-worker").args(["hold-memory", mib]).status().expect("a child can be started");
    // The engine must have heard of the kill before the container is gone.
    std::thread::sleep(NOTICE);
    assert!(child.success(), "a loader died: {child}");
}

/// A file that is there twice.
fn two_names(name: &str) -> io::Result<()> {
    File::create("/out/model.bin")?;
    fs::hard_link("/out/model.bin", format!("/out/{name}"))
}
