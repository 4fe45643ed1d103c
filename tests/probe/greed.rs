//! Taking more than one's share: memory, processor time, processes, files, what the kernel counts by user.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::syscalls::checked;
use crate::{NOTICE, error_name, outcome, tell};

/// Starts children until no more can be started, and tells how many there were. They end with this process.
pub(crate) fn fork_bomb() {
    for count in 0_u32.. {
        // SAFETY: this process has one thread; the child only sleeps until it is killed.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: only sleeps.
                unsafe { libc::pause() };
            },
            child if child > 0 => {}
            _ => {
                let error = std::io::Error::last_os_error();
                tell("children", &count.to_string());
                return tell("one more child", &error_name(&error));
            }
        }
    }
}

/// Computes with some threads for two seconds, and tells how much time of processors it got, in milliseconds.
pub(crate) fn spin() {
    const LONG: Duration = Duration::from_secs(2);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut number = 1_u64;
                while began.elapsed() < LONG {
                    for _ in 0..100_000 {
                        number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005));
                    }
                }
            });
        }
    });
    // SAFETY: all-zero is a value of this struct of numbers.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the struct that is handed to it.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut used) };
    let ms = |time: libc::timeval| time.tv_sec * 1000 + time.tv_usec / 1000;
    tell("processor time", &(ms(used.ru_utime) + ms(used.ru_stime)).to_string());
    tell("time", &began.elapsed().as_millis().to_string());
}

/// Memory that no process has mapped: files that exist nowhere.
pub(crate) fn eat_unmapped_memory() {
    std::thread::sleep(NOTICE);
    let block = vec![1_u8; 4 << 20];
    let mut kept = Vec::new();
    loop {
        let mut file = file_in_memory();
        if file.write_all(&block).is_err() {
            return tell("unmapped", "refused");
        }
        kept.push(file);
    }
}

/// A file that exists nowhere else.
pub(crate) fn file_in_memory() -> File {
    // SAFETY: the name lives on; the descriptor is kept and closed with the process.
    let fd = unsafe { libc::memfd_create(c"greed".as_ptr(), 0) };
    // SAFETY: the descriptor is open and belongs to nobody else.
    unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) }
}

/// Makes empty files in a folder until no more can be made.
pub(crate) fn fill_with_files(folder: &str) {
    std::thread::sleep(NOTICE);
    for count in 0_u32.. {
        if let Err(error) = File::create(format!("{folder}/{count}")) {
            tell("files", &count.to_string());
            return tell("one more file", &error_name(&error));
        }
    }
}

/// Takes what the kernel gives each user a number of, for all containers together, and keeps it.
pub(crate) fn take_watches() {
    let mut count = 0;
    // SAFETY: no pointers; the descriptors are closed with the process.
    while checked(unsafe { libc::inotify_init1(0) }.into()).is_ok() {
        count += 1;
    }
    tell("watches", &count.to_string());
}

/// Whether there is one left.
pub(crate) fn take_a_watch() {
    // SAFETY: no pointers; the descriptor is closed with the process.
    tell("watch", &outcome(checked(unsafe { libc::inotify_init1(0) }.into())));
}

/// Prints so many MB of what a training prints, then these words, and leaves without having reported anything.
pub(crate) fn die_saying(words: &str, megabytes: usize) -> ExitCode {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let mut left = megabytes * 1_000_000;
    let mut step = 0_u32;
    while left > 0 {
        step += 1;
        let line =
            format!("step {step}, loss 0.{:04}, gradients' norm 1.25, 1024 tokens/s, 0 errors so far\n", step % 10_000);
        left = left.saturating_sub(line.len());
        if out.write_all(line.as_bytes()).is_err() {
            return ExitCode::from(2);
        }
    }
    // The engine keeps the order of what came over one pipe only.
    let said = out.write_all(words.as_bytes()).and_then(|()| out.flush());
    if said.is_ok() { ExitCode::FAILURE } else { ExitCode::from(2) }
}
