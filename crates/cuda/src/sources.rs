//! Sources of the kernels.

/// A file of `kernels/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name, by which others include it.
    pub name: &'static str,
    /// Its contents.
    pub text: &'static str,
}

macro_rules! sources {
    ($($name:literal),+ $(,)?) => {
        &[$(SourceFile {
            name: $name,
            text: include_str!(concat!("../kernels/", $name)),
        }),+]
    };
}

/// All files that a card's compiler reads.
pub const SOURCES: &[SourceFile] = sources![
    "activation.cuh",
    "adamw.cuh",
    "attention.cuh",
    "attention_mma.cuh",
    "attention_mma_grad.cuh",
    "attention_stats.cuh",
    "common.cuh",
    "cross_entropy.cuh",
    "decode.cuh",
    "elementwise.cuh",
    "embedding.cuh",
    "experts.cuh",
    "experts_mma.cuh",
    "latent.cuh",
    "mma.cuh",
    "muon.cuh",
    "norm.cuh",
    "qkv.cuh",
    "rope_table.cuh",
    "router.cuh",
    "rows.cuh",
    "tensor_stats.cuh",
    "unit.cuh",
];

impl SourceFile {
    /// Returns the names of its kernels, the first argument of each `KERNEL(...)`.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        let lines = self.text.lines();
        lines.filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next())
    }

    /// Returns the file with this kernel.
    pub fn of_kernel(name: &str) -> Option<&'static Self> {
        let has_kernel = |file: &&Self| file.kernels().any(|kernel| kernel == name);
        SOURCES.iter().find(has_kernel)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kernels_have_different_names() {
        let all: Vec<&str> = SOURCES.iter().flat_map(SourceFile::kernels).collect();
        let names: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(names.len(), all.len());
        let file = SourceFile::of_kernel("adamw_step").expect("a kernel");
        assert_eq!(file.name, "adamw.cuh");
        assert_eq!(SourceFile::of_kernel("no_such_kernel"), None);
    }

    #[test]
    fn all_files_are_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        let files = std::fs::read_dir(folder).expect("the folder of the kernels");
        let names = files.map(|file| file.expect("a file").file_name().into_string());
        let mut names: Vec<String> = names.map(|name| name.expect("ASCII")).collect();
        names.retain(|name| name.ends_with(".cuh") && name != "emulator_tests.cuh");
        names.sort();
        let listed: Vec<&str> = SOURCES.iter().map(|file| file.name).collect();
        assert_eq!(listed, names);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn the_emulator_has_the_same_kernels() {
        let mut emulated = crate::Emulator::kernel_names();
        emulated.retain(|name| !name.starts_with("test_"));
        let emulated: BTreeSet<String> = emulated.into_iter().collect();
        let listed = SOURCES.iter().flat_map(SourceFile::kernels);
        assert_eq!(emulated, listed.map(str::to_owned).collect());
    }
}
