//! A GPU made of the CPU: libraries that look like NVIDIA's driver and cuBLAS to the worker, and run the worker's own
//! kernels, compiled by the host's C++ compiler. What they watch over is told in `machine.h` and `threads.cpp`, what can
//! be set by environment in `driver.cpp`.

use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Of the driver. Products are compiled on their own: nobody asks for the order of their sums.
const DRIVER: [&str; 4] = ["kernels.cpp", "memory.cpp", "threads.cpp", "driver.cpp"];
const COMMON: [&str; 9] = [
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-DEMULATED_GPU",
    "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",
];
/// A misaligned address or an index beyond a shared array is a fault on a GPU, so it is one here.
const AS_ON_A_GPU: [&str; 4] =
    ["-O2", "-ffp-contract=off", "-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"];
const PRODUCTS: [&str; 4] = ["-O3", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"];

/// The folder of the libraries, for `LD_LIBRARY_PATH` of another process; built when they are first asked for.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let (here, kernels) = (source("tests/emulated_gpu"), source("cuda/kernels"));
        let mut state = DefaultHasher::new();
        for file in files(&here).into_iter().chain(files(&kernels)) {
            (file.file_name(), std::fs::read(&file).unwrap()).hash(&mut state);
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated_gpu-{:016x}", state.finish()));
        if !folder.exists() {
            // Several tests may build at once; the first to be done wins.
            let building = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            build(&here, &kernels, building.path());
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
        for library in ["libcuda.so", "libcublas.so"] {
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

fn build(here: &Path, kernels: &Path, to: &Path) {
    let kernels = files(kernels).into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "cu"));
    let all: String = kernels.map(|file| format!("#include \"{}\"\n", file.display())).collect();
    let list = to.join("kernels.h");
    std::fs::write(&list, all).unwrap();
    let define = format!("-DKERNELS=\"{}\"", list.display());
    compile(here, to, "libcuda.so", &AS_ON_A_GPU, &DRIVER, &[&define]);
    let beside = format!("-L{}", to.display());
    compile(here, to, "libcublas.so", &PRODUCTS, &["cublas.cpp"], &[&beside, "-lcuda", "-Wl,-rpath,$ORIGIN"]);
}

fn compile(here: &Path, to: &Path, library: &str, options: &[&str], sources: &[&str], rest: &[&str]) {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut command = Command::new(compiler);
    command.args(COMMON).args(options).arg(format!("-Wl,-soname,{library}")).arg("-I").arg(here);
    command.arg("-o").arg(to.join(library)).args(sources.iter().map(|source| here.join(source))).args(rest);
    let done = command.output().expect("there is a C++ compiler");
    assert!(done.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&done.stderr));
}
