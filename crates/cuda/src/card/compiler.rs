//! Compilation of kernels by NVRTC, and its results on disk.

use std::ffi::{CString, c_char, c_int};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, ptr};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use crate::driver::DeviceError;
use crate::sources::{SOURCES, SourceFile};

/// Returns the machine code of a file for cards of a compute capability: from the cache, or compiled.
///
/// # Errors
/// If the file does not compile. A cache that cannot be read or written is not used.
pub(super) fn load_or_compile(
    file: &SourceFile,
    capability: (u32, u32),
    cache: &Path,
) -> Result<Vec<u8>, DeviceError> {
    let options = options(capability);
    let path = path(file, &options, cache);
    if let Ok(code) = fs::read(&path) {
        return Ok(code);
    }
    let code = compile(file, &options)?;
    let _ = store(&path, &code);
    Ok(code)
}

fn options((major, minor): (u32, u32)) -> [String; 2] {
    // Of Hopper, with the instructions that only it has.
    let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
    [
        format!("--gpu-architecture=sm_{major}{minor}{suffix}"),
        "--std=c++17".to_owned(),
    ]
}

/// Returns the path of the machine code: it contains the hash of everything that the code depends on.
fn path(file: &SourceFile, options: &[String], cache: &Path) -> PathBuf {
    let mut hash = Sha256::new();
    let (mut major, mut minor) = (0, 0);
    // SAFETY: NVRTC writes its version to both. If it fails, they stay zero.
    let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    let version = format!("{major}.{minor}");
    let sources = SOURCES.iter().flat_map(|file| [file.name, file.text]);
    let options = options.iter().map(String::as_str);
    for part in [file.name, &version]
        .into_iter()
        .chain(options)
        .chain(sources)
    {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hash: String = hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    cache.join(format!(
        "{}-{hash}.cubin",
        file.name.trim_end_matches(".cuh")
    ))
}

/// Writes a file that is complete whenever it exists.
fn store(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().expect("a folder");
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(code)?;
    file.persist(path)?;
    Ok(())
}

/// # Errors
/// If the file does not compile, with the output of the compiler.
fn compile(file: &SourceFile, options: &[String]) -> Result<Vec<u8>, DeviceError> {
    let text = |text: &str| CString::new(text).expect("a text without zeros");
    let failed = |problem: String| DeviceError::Command {
        command: "compilation of kernels",
        problem: format!("{}: {problem}", file.name),
    };
    let headers = SOURCES.iter().filter(|header| header.name != file.name);
    let headers: Vec<[CString; 2]> = headers
        .map(|header| [header.text, header.name].map(text))
        .collect();
    let pointers = |part: usize| -> Vec<*const c_char> {
        headers.iter().map(|header| header[part].as_ptr()).collect()
    };
    let [texts, names] = [pointers(0), pointers(1)];
    let (source, name) = (text(file.text), text(file.name));
    let mut program = ptr::null_mut();
    // SAFETY: all strings end with a zero and outlive the call.
    let created = unsafe {
        sys::nvrtcCreateProgram(
            &raw mut program,
            source.as_ptr(),
            name.as_ptr(),
            headers.len() as c_int,
            texts.as_ptr(),
            names.as_ptr(),
        )
    };
    created
        .result()
        .map_err(|error| failed(error.to_string()))?;
    // SAFETY: the program was created, and is destroyed once. NVRTC writes as many bytes as it has announced.
    unsafe {
        let compiled = result::compile_program(program, options);
        let code = compiled.and_then(|()| {
            let mut size = 0;
            sys::nvrtcGetCUBINSize(program, &raw mut size).result()?;
            let mut code = vec![0u8; size];
            sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
            Ok(code)
        });
        let log = result::get_program_log(program).unwrap_or_default();
        let _ = result::destroy_program(program);
        code.map_err(|error| {
            let log: Vec<u8> = log.into_iter().map(c_char::cast_unsigned).collect();
            failed(format!("{error}\n{}", String::from_utf8_lossy(&log)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs NVRTC on LD_LIBRARY_PATH, but no card"]
    fn code_is_compiled_once() {
        let cache = tempfile::tempdir().expect("a folder");
        let file = SourceFile::of_kernel("unit_rows").expect("a kernel");
        let code = load_or_compile(file, (9, 0), cache.path()).expect("compiles");
        assert!(code.starts_with(b"\x7fELF"));
        let path = path(file, &options((9, 0)), cache.path());
        assert_eq!(fs::read(&path).expect("a cached file"), code);
        // What is there is used.
        fs::write(&path, b"other").expect("written");
        let cached = load_or_compile(file, (9, 0), cache.path()).expect("cached");
        assert_eq!(cached, b"other");
        assert_ne!(
            load_or_compile(file, (8, 0), cache.path()).expect("compiles"),
            b"other"
        );
    }

    #[test]
    #[ignore = "needs NVRTC on LD_LIBRARY_PATH, but no card"]
    fn errors_of_the_compiler_are_shown() {
        let file = SourceFile {
            name: "broken.cuh",
            text: "int x = y;",
        };
        let error = compile(&file, &options((8, 0)))
            .expect_err("an error")
            .to_string();
        assert!(
            error.contains("broken.cuh") && error.contains("identifier \"y\" is undefined"),
            "{error}"
        );
    }
}
