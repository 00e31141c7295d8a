//! Tile registers: their configuration, and the instructions on them.

use super::left::LeftTiles;
use super::{ROWS, TILE, Token};
use crate::matmul::panels::{PANEL, PanelRow};
use std::arch::asm;
use std::array;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::slice;

/// Buffer of the sums of a group of rows and two panels, row by row. Not initialized, since small matmuls use little of
/// it.
#[repr(align(64))]
pub(super) struct Sums([[MaybeUninit<f32>; PANEL]; 2 * ROWS]);

impl Sums {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self([[MaybeUninit::uninit(); _]; _])
    }
}

/// Shapes of the registers: 0 and 1, 2 and 3 for the sums of the first and the last 16 rows of a group, 4 and 5 for
/// these rows of the left operand, 6 and 7 for blocks of two panels.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each register.
    widths: [u16; 16],
    /// Rows of each register.
    rows: [u8; 16],
}

/// Tile registers of this thread while they are in use; dropping it releases them, so that the system need not save
/// them any more.
pub(super) struct Registers {
    token: Token,
    /// Rows of a group; 0 before the first configuration.
    rows: usize,
    /// Other threads have registers of their own.
    thread: PhantomData<*const ()>,
}

/// Blocks of steps of both operands, as the instructions read them.
#[repr(C)]
pub(super) struct Segment<'a> {
    left: [*const u32; 2],
    right: [*const PanelRow; 2],
    /// Bytes from a row of the left operand to the next.
    stride: usize,
    blocks: usize,
    operands: PhantomData<&'a [PanelRow]>,
}

impl Registers {
    #[inline(always)]
    pub(super) fn new(token: Token) -> Self {
        Self {
            token,
            rows: 0,
            thread: PhantomData,
        }
    }

    /// Configures the registers for groups of 1 to 32 rows.
    pub(super) fn configure(&mut self, rows: usize) {
        if rows == self.rows {
            return;
        }
        assert!((1..=ROWS).contains(&rows));
        self.rows = rows;
        let halves = [rows.min(TILE), rows.saturating_sub(TILE)].map(|rows| rows as u8);
        let [first, last] = halves;
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            widths: [0; 16],
            rows: [0; 16],
        };
        configuration.rows[..8].copy_from_slice(&[
            first, first, last, last, first, last, TILE as u8, TILE as u8,
        ]);
        for (width, rows) in configuration.widths.iter_mut().zip(configuration.rows) {
            // A register has both rows and columns, or neither.
            *width = if rows == 0 { 0 } else { 64 };
        }
        // SAFETY: the token proves that the process may use the instruction, which reads these 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
    }

    /// Returns segments of the operands, the left one with the configured rows.
    #[inline(always)]
    pub(super) fn segment<'a, const P: usize>(
        &'a self,
        left: LeftTiles<'a>,
        right: [&'a [PanelRow]; P],
        blocks: usize,
    ) -> Segment<'a> {
        assert!(
            self.rows <= left.rows && blocks <= left.blocks,
            "matmul: the left operand is too short"
        );
        for right in right {
            assert!(
                blocks * TILE <= right.len(),
                "matmul: the right operand is too short"
            );
        }
        Segment {
            left: array::from_fn(|half| left.data.wrapping_add(half * TILE * left.stride)),
            right: array::from_fn(|p| right[p.min(P - 1)].as_ptr()),
            stride: left.stride * size_of::<u32>(),
            blocks,
            operands: PhantomData,
        }
    }

    /// Returns the sums of the products of all segments, for the configured rows and `P` panels.
    #[inline(always)]
    pub(super) fn multiply<'a, const P: usize>(
        &self,
        segments: &[Segment<'_>; 3],
        out: &'a mut Sums,
    ) -> &'a mut [[f32; PANEL]] {
        const { assert!(P == 1 || P == 2) };
        // The instructions below advance by this number.
        const { assert!(size_of::<Segment<'_>>() == 48) };
        // SAFETY: the token proves that the process may use the instructions. Each segment holds the rows and panels
        // that it was checked for, and outlives none of its operands; the registers still have the shapes of that
        // check, since segments borrow `self`. `out` holds the rows of any configuration, and those of this one are
        // written before they are returned.
        unsafe {
            match (self.rows > TILE, P) {
                (true, 2) => multiply!(segments, out,
                zero: ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                add: [
                    "tileloadd tmm4, [{left0} + {stride}]",
                    "tileloadd tmm6, [{right0} + {row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{right1} + {row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{left1} + {stride}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7"
                ],
                store: [
                    "tilestored [{out} + {row}*2], tmm0",
                    "tilestored [{out} + {row}*2 + 64], tmm1",
                    "tilestored [{out} + {row}*2 + 2048], tmm2",
                    "tilestored [{out} + {row}*2 + 2112], tmm3"
                ]),
                (true, _) => multiply!(segments, out,
                zero: ["tilezero tmm0", "tilezero tmm2"],
                add: [
                    "tileloadd tmm6, [{right0} + {row}]",
                    "tileloadd tmm4, [{left0} + {stride}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{left1} + {stride}]",
                    "tdpbf16ps tmm2, tmm5, tmm6"
                ],
                store: [
                    "tilestored [{out} + {row}], tmm0",
                    "tilestored [{out} + {row} + 1024], tmm2"
                ]),
                (false, 2) => multiply!(segments, out,
                zero: ["tilezero tmm0", "tilezero tmm1"],
                add: [
                    "tileloadd tmm4, [{left0} + {stride}]",
                    "tileloadd tmm6, [{right0} + {row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{right1} + {row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7"
                ],
                store: [
                    "tilestored [{out} + {row}*2], tmm0",
                    "tilestored [{out} + {row}*2 + 64], tmm1"
                ]),
                (false, _) => multiply!(segments, out,
                    zero: ["tilezero tmm0"],
                    add: [
                        "tileloadd tmm4, [{left0} + {stride}]",
                        "tileloadd tmm6, [{right0} + {row}]",
                        "tdpbf16ps tmm0, tmm4, tmm6"
                    ],
                    store: ["tilestored [{out} + {row}], tmm0"]),
            }
            slice::from_raw_parts_mut(out.0.as_mut_ptr().cast(), self.rows * P)
        }
    }
}

impl Drop for Registers {
    #[inline(always)]
    fn drop(&mut self) {
        let Token(()) = self.token;
        // SAFETY: the token proves that the process may use the instruction.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// Sums over segments, in one assembler block: no register has to keep its contents between two of them.
macro_rules! multiply {
    (
        $segments:expr, $out:expr,
        zero: [$($zero:literal),*], add: [$($add:literal),*], store: [$($store:literal),*]
    ) => {
        asm!(
            $($zero,)*
            "2:",
            "mov {left0}, [{segment}]",
            "mov {left1}, [{segment} + 8]",
            "mov {right0}, [{segment} + 16]",
            "mov {right1}, [{segment} + 24]",
            "mov {stride}, [{segment} + 32]",
            "mov {blocks}, [{segment} + 40]",
            "test {blocks}, {blocks}",
            "jz 4f",
            "3:",
            $($add,)*
            "add {left0}, 64",
            "add {left1}, 64",
            "add {right0}, 1024",
            "add {right1}, 1024",
            "dec {blocks}",
            "jnz 3b",
            "4:",
            "add {segment}, 48",
            "dec {segments}",
            "jnz 2b",
            $($store,)*
            left0 = out(reg) _,
            left1 = out(reg) _,
            right0 = out(reg) _,
            right1 = out(reg) _,
            stride = out(reg) _,
            blocks = out(reg) _,
            segment = inout(reg) $segments.as_ptr() => _,
            segments = inout(reg) $segments.len() => _,
            row = in(reg) size_of::<PanelRow>(),
            out = in(reg) &raw mut *$out,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        )
    };
}
use multiply;
