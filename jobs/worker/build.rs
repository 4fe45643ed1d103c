//! Compiles the GPU kernels into one image for several generations of GPUs, if the feature `cuda` is on and
//! `DRYDOCK_NVCC` names NVIDIA's compiler. Otherwise the image is an empty one: all else can be built, checked and
//! tested without NVIDIA's tools, and the program says that it has no kernels when it opens a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Generations that get machine code of their own; A100, A10 and RTX 30, L4 and RTX 40, H100 and H200, B200, RTX 50.
const MACHINES: [u32; 6] = [80, 86, 89, 90, 100, 120];
/// For generations that are yet to come, the driver compiles this one's intermediate code.
const INTERMEDIATE: u32 = 80;
/// A module without kernels that every driver takes.
const EMPTY: &[u8] = b".version 8.0\n.target sm_80\n.address_size 64\n\0";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda/kernels");
    println!("cargo::rerun-if-env-changed=DRYDOCK_NVCC");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let image = out.join("kernels.fatbin");
    match std::env::var_os("DRYDOCK_NVCC") {
        None => std::fs::write(&image, EMPTY).expect("cargo's folder can be written to"),
        Some(nvcc) => compile(Path::new(&nvcc), &all_kernels(&out), &image),
    }
}

/// One file that includes all others, so that they become one module.
fn all_kernels(out: &Path) -> PathBuf {
    let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("cuda/kernels");
    let files = std::fs::read_dir(&folder).expect("the kernels are there");
    let mut files: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    let text: String = files.iter().map(|file| format!("#include \"{}\"\n", file.display())).collect();
    let all = out.join("kernels.cu");
    std::fs::write(&all, text).expect("cargo's folder can be written to");
    all
}

fn compile(nvcc: &Path, source: &Path, image: &Path) {
    let mut command = Command::new(nvcc);
    command.args([
        "-fatbin",
        "-std=c++17",
        "-O3",
        "--threads",
        "0",
        "-Xfatbin",
        "-compress-all",
        "-Xptxas",
        "-v",
        "-o",
    ]);
    command.arg(image).arg(source);
    for machine in MACHINES {
        command.arg(format!("-gencode=arch=compute_{machine},code=sm_{machine}"));
    }
    command.arg(format!("-gencode=arch=compute_{INTERMEDIATE},code=compute_{INTERMEDIATE}"));
    let done = command.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", nvcc.display()));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}\n{}{said}", String::from_utf8_lossy(&done.stdout));
    tell_spills(&said);
    // What ptxas says of every kernel's registers, for whoever wants to know.
    std::fs::write(image.with_extension("txt"), said.as_bytes()).expect("cargo's folder can be written to");
}

/// Values that find no register lie in the GPU's memory, hundreds of times slower: a kernel's author should know.
fn tell_spills(said: &str) {
    let mut kernel = "";
    for line in said.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            kernel = name;
        } else if line.contains("bytes spill stores") && !line.contains(" 0 bytes spill stores") {
            println!("cargo::warning=the kernel {kernel} spills: {}", line.trim());
        }
    }
}
