//! Compiles the kernels for the emulator.

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    #[cfg(feature = "emulator")]
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        .flag("-Wno-unknown-pragmas")
        .file("kernels/emulator.cpp")
        .compile("hybridnorm_cuda_kernels");
}
