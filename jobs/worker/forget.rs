//! Memory that is given back as soon as it is known not to be needed again, so that the parts of an attempt share what
//! they use instead of adding up.

use std::ops::Range;

use memmap2::Mmap;

/// Lets go of the pages of a mapped file that were read for the last time. The kernel would take them back by itself when
/// memory gets short; but until then they count as ours, and a limit would have to have room for them. To read them again
/// is slower, and nothing else.
pub fn pages(file: &Mmap, bytes: Range<usize>) {
    #[cfg(unix)]
    // SAFETY: the mapping is read-only and shared with the file's own pages, so that they come back as they were.
    let forgotten =
        unsafe { file.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
    #[cfg(not(unix))]
    let forgotten: std::io::Result<()> = Ok(drop((file, bytes)));
    // Where the kernel knows of no such advice, they stay a little longer.
    drop(forgotten);
}

/// Gives back what lies free between and behind the blocks of the heap: at the end of a part that has used much of it
/// (texts, a tokenizer being learnt) and before one that will use it otherwise. See [`crate::process`] for why that does
/// not happen by itself.
pub fn free_heap() {
    // SAFETY: it may be called at any time, by any thread.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_forgotten_is_read_again_as_it_was() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        // SAFETY: nobody else knows of the file.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        assert!(*map == *bytes);
        pages(&map, 4097..90_001);
        assert!(*map == *bytes);
    }
}
