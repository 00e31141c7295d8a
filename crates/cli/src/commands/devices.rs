//! `hybridnorm devices`.

use hybridnorm::graph::DType;
use hybridnorm::plan::Precision;
use hybridnorm::{Device, Error, machine, threads};
use serde::Serialize;

use super::Outcome;
use crate::args::DevicesArgs;
use crate::table::{bytes, text_table};

/// Devices of this machine.
#[derive(Serialize)]
struct Devices {
    cpu: Processor,
    /// CUDA cards.
    cards: Vec<Card>,
    /// Reason for which no card can be used.
    cuda_problem: Option<String>,
}

#[derive(Serialize)]
struct Processor {
    name: String,
    threads: usize,
    bf16_unit: &'static str,
}

#[derive(Serialize)]
struct Card {
    device: String,
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    memory_bytes: u64,
}

pub fn run(args: &DevicesArgs) -> Result<Outcome, Error> {
    let (cards, cuda_problem) = match cards() {
        Ok(cards) => (cards, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    let devices = Devices {
        cpu: Processor {
            name: machine::cpu_name(),
            threads: threads::count(),
            bf16_unit: Precision::Bf16 {
                residual: DType::F32,
            }
            .matmul_unit(),
        },
        cards,
        cuda_problem,
    };
    args.output.print(&devices, text)?;
    Ok(Outcome::Completed)
}

#[cfg(feature = "cuda")]
fn cards() -> Result<Vec<Card>, String> {
    let cards = hybridnorm::exec::cards().map_err(|error| error.to_string())?;
    let card = |card: hybridnorm::exec::CardInfo| {
        let (major, minor) = card.compute_capability;
        Card {
            device: Device::Cuda(card.index).to_string(),
            name: card.name,
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: card.multiprocessors,
            memory_bytes: card.memory,
        }
    };
    Ok(cards.into_iter().map(card).collect())
}

#[cfg(not(feature = "cuda"))]
fn cards() -> Result<Vec<Card>, String> {
    Err("this program was built without CUDA; build it with --features cuda".to_owned())
}

fn text(devices: &Devices) -> String {
    let mut table = text_table(&["device", "name", "details"]);
    let cpu = &devices.cpu;
    table.add_row([
        Device::Cpu.to_string(),
        cpu.name.clone(),
        format!("{} threads, bf16 with {}", cpu.threads, cpu.bf16_unit),
    ]);
    for card in &devices.cards {
        table.add_row([
            card.device.clone(),
            card.name.clone(),
            format!(
                "{}, compute capability {}, {} multiprocessors",
                bytes(card.memory_bytes),
                card.compute_capability,
                card.multiprocessors
            ),
        ]);
    }
    let note = match (&devices.cuda_problem, devices.cards.is_empty()) {
        (Some(problem), _) => format!("no CUDA card: {problem}\n"),
        (None, true) => "no CUDA card: the driver finds none\n".to_owned(),
        (None, false) => String::new(),
    };
    format!("{table}\n{note}")
}
