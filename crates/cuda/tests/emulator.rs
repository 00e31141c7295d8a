//! Tests of the emulator: what it finds, and matrix products by their definition.

use half::bf16;
use hybridnorm_cuda::{
    Arguments, CallCounts, Command, Copy, Device, DeviceError, ElementType, Elements, Emulator,
    FiberOrder, Fill, Launch, Matmul, MatrixOperand, Span,
};

fn emulated(order: FiberOrder) -> Device<Emulator> {
    Device::new(Emulator::new(order))
}

fn span(device: &mut Device<Emulator>, bytes: usize) -> Span {
    Span {
        memory: device.allocate(bytes).unwrap(),
        start: 0,
        bytes,
    }
}

fn launch(kernel: &'static str, threads: u32, out: Span) -> Command {
    Command::Launch(Launch {
        kernel,
        blocks: 2,
        threads,
        shared_bytes: 4 * threads,
        arguments: Arguments::default().address(out),
    })
}

/// Returns what a kernel writes for two blocks of 64 threads.
fn run(kernel: &'static str, order: FiberOrder) -> Result<Vec<f32>, DeviceError> {
    let mut device = emulated(order);
    let out = span(&mut device, 4 * 2 * 64);
    device.run(&[launch(kernel, 64, out)])?;
    Ok(floats(&device.download(out)?))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.as_chunks().0.iter();
    numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

const ORDERS: [FiberOrder; 3] = [
    FiberOrder::Forward,
    FiberOrder::Backward,
    FiberOrder::Shuffled,
];

#[test]
fn barriers_that_threads_do_not_reach_are_found() {
    for order in ORDERS {
        let error = run("test_missing_barrier", order).unwrap_err().to_string();
        assert!(
            error.contains("test_missing_barrier: threads wait at a barrier"),
            "{error}"
        );
    }
}

#[test]
fn shared_memory_that_was_not_written_is_not_a_number() {
    let found = run("test_unwritten_memory", FiberOrder::Forward).unwrap();
    assert!(found.iter().all(|x| x.is_nan()), "{found:?}");
}

#[test]
fn writes_behind_shared_memory_are_found() {
    let error = run("test_shared_memory_exceeded", FiberOrder::Forward).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test_shared_memory_exceeded: writes behind its shared memory"
    );
}

#[test]
fn shuffled_threads_all_take_their_turns() {
    for threads in [32, 96, 160, 1024] {
        let mut device = emulated(FiberOrder::Shuffled);
        let out = span(&mut device, 4 * 2 * 1024);
        device
            .run(&[launch("test_block_reductions", threads, out)])
            .unwrap();
        let expected = (threads * (threads - 1) / 2 + threads - 1) as f32;
        let found = floats(&device.download(out).unwrap());
        assert_eq!(
            found[..2 * threads as usize],
            vec![expected; 2 * threads as usize]
        );
    }
}

#[test]
fn races_change_with_the_order() {
    let [forward, backward, _] = ORDERS.map(|order| run("test_race", order).unwrap());
    let is_equal = forward
        .iter()
        .zip(&backward)
        .all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(!is_equal, "{forward:?}");
}

#[test]
fn reductions_of_blocks() {
    for order in ORDERS {
        // 0 + ... + 63, and 63.
        assert_eq!(
            run("test_block_reductions", order).unwrap(),
            [2016.0 + 63.0; 128]
        );
    }
}

#[test]
fn impossible_launches_are_errors() {
    let mut device = emulated(FiberOrder::Forward);
    let out = span(&mut device, 4 * 2 * 64);
    let mut problem = |command| device.run(&[command]).unwrap_err().to_string();
    assert_eq!(
        problem(launch("no_such_kernel", 64, out)),
        "no_such_kernel: there is no such kernel"
    );
    assert_eq!(
        problem(launch("test_race", 40, out)),
        "test_race: blocks of 40 threads"
    );
    assert_eq!(
        problem(launch("test_race", 2048, out)),
        "test_race: blocks of 2048 threads"
    );
}

#[test]
#[should_panic(expected = "bytes 0..65 of an allocation of 64")]
fn arguments_beyond_their_allocation_are_found() {
    let mut device = emulated(FiberOrder::Forward);
    let out = span(&mut device, 64);
    let beyond = Span { bytes: 65, ..out };
    let _ = device.run(&[launch("test_race", 64, beyond)]);
}

#[test]
fn recorded_commands_run_when_they_are_replayed() {
    let mut device = emulated(FiberOrder::Forward);
    let [x, y] = [8, 8].map(|bytes| span(&mut device, bytes));
    let (pattern, to) = (1.5f32.to_bits(), x.part(4, 4));
    let commands = [
        Command::Fill(Fill { to, pattern }),
        Command::Copy(Copy { from: x, to: y }),
    ];
    let numbers = |device: &Device<Emulator>| floats(&device.download(y).unwrap());
    let before = device.driver().calls();
    let recording = device.record(&commands).unwrap();
    assert_eq!(numbers(&device), [0.0, 0.0]);
    for first in [2.0f32, 3.0] {
        device
            .upload(x, &[first, 0.0].map(f32::to_le_bytes).concat())
            .unwrap();
        device.replay(recording).unwrap();
        assert_eq!(numbers(&device), [first, 1.5]);
    }
    let expected = CallCounts {
        commands: before.commands + commands.len(),
        uploads: before.uploads + 2,
        captures: 1,
        replays: 2,
    };
    assert_eq!(device.driver().calls(), expected);
}

#[test]
fn commands_run_after_a_recording_has_failed() {
    let mut device = emulated(FiberOrder::Forward);
    let out = span(&mut device, 4 * 2 * 64);
    for wrong in [
        launch("no_such_kernel", 64, out),
        launch("test_race", 40, out),
    ] {
        let pattern = 2.5f32.to_bits();
        let fill = Command::Fill(Fill { to: out, pattern });
        device.record(&[fill, wrong]).unwrap_err();
        assert_eq!(floats(&device.download(out).unwrap()), [0.0; 128]);
    }
    device
        .run(&[launch("test_block_reductions", 64, out)])
        .unwrap();
    assert_eq!(floats(&device.download(out).unwrap()), [2016.0 + 63.0; 128]);
}

#[test]
#[should_panic(expected = "memory that was freed")]
fn memory_that_was_freed_is_not_accessed() {
    let mut device = emulated(FiberOrder::Forward);
    let out = span(&mut device, 64);
    device.free(out.memory).unwrap();
    let _ = device.download(out);
}

#[test]
fn sums_of_no_products_are_zero() {
    let mut device = emulated(FiberOrder::Forward);
    let c = span(&mut device, 4 * 6);
    device
        .upload(c, &[1.0f32; 6].map(f32::to_le_bytes).concat())
        .unwrap();
    let operand = |bytes, stride| MatrixOperand {
        elements: Elements {
            span: c.part(0, bytes),
            element_type: ElementType::F32,
        },
        stride,
        is_transposed: false,
    };
    let mut product = Matmul {
        m: 2,
        n: 3,
        k: 0,
        a: operand(0, 0),
        b: operand(0, 3),
        c: operand(4 * 6, 3),
        accumulate: true,
    };
    for expected in [[1.0; 6], [0.0; 6]] {
        device.run(&[Command::Matmul(product)]).unwrap();
        assert_eq!(floats(&device.download(c).unwrap()), expected);
        product.accumulate = false;
    }
}

#[test]
fn memory_is_filled_and_copied() {
    let mut device = emulated(FiberOrder::Forward);
    let [from, to] = [16, 16].map(|bytes| span(&mut device, bytes));
    let pattern = 1.5f32.to_bits();
    let to_middle = Command::Copy(Copy {
        from: from.part(0, 8),
        to: to.part(4, 8),
    });
    device
        .run(&[Command::Fill(Fill { to: from, pattern }), to_middle])
        .unwrap();
    assert_eq!(floats(&device.download(to).unwrap()), [0.0, 1.5, 1.5, 0.0]);
}

/// Returns an operand (rows, columns) with a stride, and its elements after transposition.
fn operand(
    device: &mut Device<Emulator>,
    element_type: ElementType,
    (rows, columns): (usize, usize),
    is_transposed: bool,
) -> (MatrixOperand, Vec<Vec<f32>>) {
    let (stored_rows, stored_columns) = if is_transposed {
        (columns, rows)
    } else {
        (rows, columns)
    };
    let stride = stored_columns + 3;
    let numbers: Vec<f32> = (0..stored_rows * stride)
        .map(|i| (i * 7 % 11) as f32 - 5.0)
        .collect();
    let bytes: Vec<u8> = match element_type {
        ElementType::Bf16 => numbers
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect(),
        _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let span = span(device, bytes.len());
    device.upload(span, &bytes).unwrap();
    let at = |i: usize, j: usize| {
        if is_transposed {
            numbers[j * stride + i]
        } else {
            numbers[i * stride + j]
        }
    };
    let matrix = (0..rows)
        .map(|i| (0..columns).map(|j| at(i, j)).collect())
        .collect();
    let operand = MatrixOperand {
        elements: Elements { span, element_type },
        stride,
        is_transposed,
    };
    (operand, matrix)
}

#[test]
fn matrix_products_by_their_definition() {
    let (m, n, k) = (3, 5, 4);
    for element_type in [ElementType::F32, ElementType::Bf16] {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for accumulate in [false, true] {
                let mut device = emulated(FiberOrder::Forward);
                let (a, left) = operand(&mut device, element_type, (m, k), transposed[0]);
                let (b, right) = operand(&mut device, element_type, (k, n), transposed[1]);
                let (c, before) = operand(&mut device, ElementType::F32, (m, n), false);
                let matmul = Matmul {
                    m,
                    n,
                    k,
                    a,
                    b,
                    c,
                    accumulate,
                };
                device.run(&[Command::Matmul(matmul)]).unwrap();
                let found = floats(&device.download(c.elements.span).unwrap());
                for i in 0..m {
                    for j in 0..n {
                        let product: f32 = (0..k).map(|l| left[i][l] * right[l][j]).sum();
                        let expected = if accumulate {
                            before[i][j] + product
                        } else {
                            product
                        };
                        assert_eq!(
                            found[i * c.stride + j],
                            expected,
                            "{element_type:?} {transposed:?}"
                        );
                    }
                }
            }
        }
    }
}
