//! Download of a model by name, from a server on this machine.

#![cfg(feature = "hub")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use common::reference::fixture;
use hybridnorm::Device;
use hybridnorm::interop::{self, hub::Hub};

/// Serves a folder as the model `someone/model`, and returns the address.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let folder = folder.clone();
            std::thread::spawn(move || answer_all(stream.unwrap(), &folder));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream, folder: &Path) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let path = head.split(' ').nth(1).unwrap();
        let range = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("range")
                .then(|| value.trim_start_matches("bytes=").to_owned())
        });
        stream
            .write_all(&answer(path, range.as_deref(), folder))
            .unwrap();
    }
}

fn answer(path: &str, range: Option<&str>, folder: &Path) -> Vec<u8> {
    let response = |status: &str, headers: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    if path == "/api/models/someone/model/revision/main" {
        let names = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let files: Vec<_> = names
            .map(|name| serde_json::json!({ "rfilename": name.to_str().unwrap() }))
            .chain([serde_json::json!({ "rfilename": "../../outside.json" })])
            .collect();
        let body = serde_json::json!({ "sha": "0123abcd", "siblings": files }).to_string();
        return response(
            "200 OK",
            "content-type: application/json\r\n",
            body.as_bytes(),
        );
    }
    let file = path.strip_prefix("/someone/model/resolve/main/");
    let Some(bytes) = file.and_then(|file| std::fs::read(folder.join(file)).ok()) else {
        return response("404 Not Found", "", b"");
    };
    let (start, end) = match range.and_then(|range| range.split_once('-')) {
        Some((start, end)) => (
            start.parse().unwrap(),
            end.parse().unwrap_or(bytes.len() - 1),
        ),
        None => (0, bytes.len() - 1),
    };
    let end = end.min(bytes.len() - 1);
    let headers = format!(
        "x-repo-commit: 0123abcd\r\netag: \"{}\"\r\ncontent-range: bytes {start}-{end}/{}\r\n",
        file.unwrap().replace('.', "-"),
        bytes.len()
    );
    response("206 Partial Content", &headers, &bytes[start..=end])
}

#[test]
fn models_are_downloaded_by_name() {
    let fixture = fixture("hf/llama");
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(serve(fixture.clone()), cache.path());
    let folder = hub.download("someone/model", "main").unwrap();
    let downloaded = interop::import(&folder, Device::Cpu).unwrap();
    let local = interop::import(&fixture, Device::Cpu).unwrap();
    assert_eq!(downloaded.model.values(), local.model.values());
    // Files that are not part of a model are not downloaded.
    assert!(!folder.join("reference.json").exists());

    let error = |name: &str, revision: &str| hub.download(name, revision).unwrap_err().to_string();
    assert!(
        error("someone/other", "main")
            .contains("someone/other (main): a list of files cannot be downloaded")
    );
    for (name, revision) in [
        ("../model", "main"),
        ("a/b c", "main"),
        ("someone/model", "refs/../x"),
        ("", "main"),
    ] {
        assert!(
            error(name, revision).contains(" is not "),
            "{name} {revision}"
        );
    }
}

/// The index names the files of the weights.
#[test]
fn weights_in_several_files_are_downloaded() {
    let fixture = fixture("hf/llama");
    let folder = tempfile::tempdir().unwrap();
    let to = |name: &str| folder.path().join(name);
    std::fs::copy(fixture.join("config.json"), to("config.json")).unwrap();
    std::fs::copy(fixture.join("model.safetensors"), to("weights.safetensors")).unwrap();
    std::fs::write(to("model-other.safetensors"), b"not listed").unwrap();
    let local = interop::import(&fixture, Device::Cpu).unwrap().model;
    let listed = |file: &str| {
        let map = serde_json::json!({ "weight_map": { "model.norm.weight": file } });
        std::fs::write(to("model.safetensors.index.json"), map.to_string()).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(serve(folder.path().to_owned()), cache.path());
        let found = hub.download("someone/model", "main");
        found.map(|folder| {
            assert!(!folder.join("model-other.safetensors").exists());
            interop::import(&folder, Device::Cpu)
                .unwrap()
                .model
                .values()
        })
    };
    assert_eq!(listed("weights.safetensors").unwrap(), local.values());
    let error = listed("../weights.safetensors").unwrap_err().to_string();
    assert!(error.contains("is not the name of a file"), "{error}");
    let error = listed("absent.safetensors").unwrap_err().to_string();
    assert!(
        error.contains("absent.safetensors cannot be downloaded"),
        "{error}"
    );
}

#[test]
fn models_without_safetensors_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), b"pickle").unwrap();
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(serve(folder.path().to_owned()), cache.path());
    let error = hub
        .download("someone/model", "main")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("config.json is missing, which someone/model does not have"),
        "{error}"
    );
    std::fs::write(folder.path().join("config.json"), b"{}").unwrap();
    let error = hub
        .download("someone/model", "main")
        .unwrap_err()
        .to_string();
    assert!(error.contains("model.safetensors is missing"), "{error}");
}
