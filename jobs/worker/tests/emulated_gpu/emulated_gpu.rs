//! GPUs made of the CPU: libraries that look like NVIDIA's driver, cuBLAS and NCCL to the worker, and run the worker's own
//! kernels, compiled by the host's C++ compiler. What they watch over is told in `machine.h` and `threads.cpp`, what can
//! be set by environment in `driver.cpp` and `nccl.cpp`.

use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder of the libraries, for `LD_LIBRARY_PATH` of another process; built when they are first asked for.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut state = DefaultHasher::new();
        for file in files(&source("tests/emulated_gpu")).into_iter().chain(files(&source("cuda/kernels"))) {
            (file.file_name(), std::fs::read(&file).unwrap()).hash(&mut state);
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated_gpu-{:016x}", state.finish()));
        if !folder.exists() {
            // Several tests may build at once; the first to be done wins.
            let building = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            build(building.path());
            let _ = std::fs::rename(building.path(), &folder);
        }
        folder
    })
}

/// Gives this process the emulated GPU. Nothing may have looked for a GPU before.
pub(crate) fn plug_in() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        // What is asked for later under the same name is what is loaded already.
        for library in ["libcuda.so", "libcublas.so", "libnccl.so.2"] {
            let path = CString::new(folder().join(library).into_os_string().into_encoded_bytes()).unwrap();
            // SAFETY: the library's constructors only note which kernels there are.
            let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            assert!(!handle.is_null(), "{library} of the emulated GPU loads");
        }
    });
}

fn source(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn build(to: &Path) {
    let done = Command::new(source("tests/emulated_gpu").join("build.sh")).arg(to).output().expect("there is a shell");
    assert!(done.status.success(), "the emulated GPU builds: {}", String::from_utf8_lossy(&done.stderr));
}
