//! Emulator of the AMX instructions of the kernel, for tests on other processors: a handler of the signal for illegal
//! instructions.

use super::TILE;
use super::model::tdpbf16ps;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::Once;

/// A tile register: rows of 64 bytes.
type Tile = [[u32; TILE]; TILE];

/// Tile registers of a thread.
struct State {
    is_configured: bool,
    /// Rows, and elements of a row, of each register.
    shapes: [(usize, usize); 8],
    tiles: [Tile; 8],
}

const ZERO: Tile = [[0; TILE]; TILE];

thread_local! {
    // Neither initialized at run time nor dropped, so that a signal handler may use it.
    static STATE: RefCell<State> = const {
        RefCell::new(State { is_configured: false, shapes: [(0, 0); 8], tiles: [ZERO; 8] })
    };
}

/// True if the registers of this thread are in use.
#[cfg(test)]
pub(super) fn is_configured() -> bool {
    STATE.with_borrow(|state| state.is_configured)
}

/// Makes AMX instructions work in this process.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = handle;
        // SAFETY: all-zero bytes are a valid value of this C structure, and the handler only uses memory that signal
        // handlers may use: its stack, and statically allocated thread-local variables.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "cannot handle illegal instructions");
    });
}

extern "C" fn handle(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes the interrupted context, which nothing else uses now.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let done = STATE.with(|state| {
        let mut state = state.try_borrow_mut().ok()?;
        // SAFETY: the processor was about to execute what the instruction pointer points to.
        let (instruction, next) = unsafe { decode(registers)? };
        // SAFETY: the kernel may access the memory that its instructions access.
        unsafe { execute(&mut state, instruction)? };
        registers[libc::REG_RIP as usize] = next;
        Some(())
    });
    if done.is_none() {
        // SAFETY: a valid signal and action. The instruction is executed again, and ends the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Fields of an instruction with a VEX prefix.
struct Instruction {
    /// Implied prefix: 0 is none, 1 is 66, 2 is F3, 3 is F2.
    prefix: u8,
    opcode: u8,
    register: usize,
    operand: Operand,
    /// Register of the field VEX.vvvv.
    second: usize,
}

enum Operand {
    Register(usize),
    Memory { address: usize, index: usize },
}

/// Decodes the instruction; returns it with the address of the next one.
///
/// # Safety
/// The instruction pointer must point to an instruction.
unsafe fn decode(registers: &[libc::greg_t; 23]) -> Option<(Instruction, libc::greg_t)> {
    let mut at = registers[libc::REG_RIP as usize] as *const u8;
    let mut next = || {
        // SAFETY: only bytes that belong to the instruction are read.
        let byte = unsafe { at.read() };
        at = at.wrapping_add(1);
        byte
    };
    if next() != 0xc4 {
        return None;
    }
    let (extensions, fields) = (next(), next());
    // Opcodes of the map 0F38, with W = 0 and L = 0.
    if extensions & 0x1f != 2 || fields & 0x84 != 0 {
        return None;
    }
    let opcode = next();
    let modrm = next();
    // Bits 7, 6 and 5 are the inverted upper bits of the register, the index and the base.
    let extended = |low: u8, bit: u8| usize::from(low & 7 | (!extensions >> bit & 1) << 3);
    let operand = match (modrm >> 6, modrm & 7) {
        (3, low) => Operand::Register(extended(low, 5)),
        (mode, low) => {
            let (base, index) = if low == 4 {
                let sib = next();
                let index = match extended(sib >> 3, 6) {
                    4 => 0,
                    index => general(registers, index) << (sib >> 6),
                };
                (sib, index)
            } else {
                (low, 0)
            };
            // Relative to the instruction pointer, or without a base.
            if mode == 0 && base & 7 == 5 {
                return None;
            }
            let displacement = match mode {
                0 => 0,
                1 => isize::from(next().cast_signed()),
                _ => i32::from_le_bytes([next(), next(), next(), next()]) as isize,
            };
            let base = general(registers, extended(base, 5));
            Operand::Memory {
                address: base.wrapping_add_signed(displacement),
                index,
            }
        }
    };
    let instruction = Instruction {
        prefix: fields & 3,
        opcode,
        register: extended(modrm >> 3, 7),
        operand,
        second: usize::from(!fields >> 3 & 15),
    };
    Some((instruction, at as libc::greg_t))
}

/// Returns a general-purpose register by its number in instructions.
fn general(registers: &[libc::greg_t; 23], number: usize) -> usize {
    use libc::{REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    use libc::{REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
    const NUMBERS: [c_int; 16] = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
        REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    registers[NUMBERS[number] as usize] as usize
}

/// Executes an instruction, unless it is unknown or would fail on a processor with AMX.
///
/// # Safety
/// The instruction must access only memory that the program may access.
unsafe fn execute(state: &mut State, instruction: Instruction) -> Option<()> {
    let Instruction {
        prefix,
        opcode,
        register,
        operand,
        second,
    } = instruction;
    match (prefix, opcode, operand) {
        // LDTILECFG
        (0, 0x49, Operand::Memory { address, index }) if register == 0 => {
            let address = address.wrapping_add(index) as *const [u8; 64];
            // SAFETY: the instruction reads these 64 bytes.
            *state = configured(unsafe { address.read() })?;
        }
        // TILERELEASE
        (0, 0x49, Operand::Register(0)) if register == 0 => {
            state.is_configured = false;
            state.shapes = [(0, 0); 8];
            state.tiles = [ZERO; 8];
        }
        // TILEZERO
        (3, 0x49, Operand::Register(0)) => {
            state.shape(register)?;
            state.tiles[register] = ZERO;
        }
        // TILELOADD
        (3, 0x4b, Operand::Memory { address, index }) => {
            let (rows, width) = state.shape(register)?;
            let tile = &mut state.tiles[register];
            *tile = ZERO;
            for (i, row) in tile.iter_mut().take(rows).enumerate() {
                for (j, element) in row.iter_mut().take(width).enumerate() {
                    let address = address
                        .wrapping_add(i.wrapping_mul(index))
                        .wrapping_add(4 * j);
                    // SAFETY: the instruction reads this element.
                    *element = unsafe { (address as *const u32).read_unaligned() };
                }
            }
        }
        // TILESTORED
        (2, 0x4b, Operand::Memory { address, index }) => {
            let (rows, width) = state.shape(register)?;
            for (i, row) in state.tiles[register].iter().take(rows).enumerate() {
                for (j, element) in row.iter().take(width).enumerate() {
                    let address = address
                        .wrapping_add(i.wrapping_mul(index))
                        .wrapping_add(4 * j);
                    // SAFETY: the instruction writes this element.
                    unsafe { (address as *mut u32).write_unaligned(*element) };
                }
            }
        }
        // TDPBF16PS
        (2, 0x5c, Operand::Register(first)) => state.multiply_add(register, first, second)?,
        _ => return None,
    }
    Some(())
}

/// Returns the registers after LDTILECFG, if the configuration is valid.
fn configured(bytes: [u8; 64]) -> Option<State> {
    let is_reserved_zero = bytes[1..16].iter().all(|byte| *byte == 0)
        && bytes[32..48].iter().all(|byte| *byte == 0)
        && bytes[56..].iter().all(|byte| *byte == 0);
    if bytes[0] != 1 || !is_reserved_zero {
        return None;
    }
    let mut shapes = [(0, 0); 8];
    for (i, shape) in shapes.iter_mut().enumerate() {
        let width = usize::from(u16::from_le_bytes([bytes[16 + 2 * i], bytes[17 + 2 * i]]));
        let rows = usize::from(bytes[48 + i]);
        let is_valid = rows <= TILE && width <= 4 * TILE && width.is_multiple_of(4);
        if !is_valid || (rows == 0) != (width == 0) {
            return None;
        }
        *shape = (rows, width / 4);
    }
    Some(State {
        is_configured: true,
        shapes,
        tiles: [ZERO; 8],
    })
}

impl State {
    /// Returns rows and elements of a row, if the register may be used.
    fn shape(&self, register: usize) -> Option<(usize, usize)> {
        let shape = *self.shapes.get(register)?;
        (self.is_configured && shape.0 > 0).then_some(shape)
    }

    /// Executes TDPBF16PS.
    fn multiply_add(&mut self, out: usize, left: usize, right: usize) -> Option<()> {
        let [
            (rows, columns),
            (left_rows, left_steps),
            (steps, right_columns),
        ] = [self.shape(out)?, self.shape(left)?, self.shape(right)?];
        let are_distinct = out != left && out != right && left != right;
        if !are_distinct || (rows, columns, steps) != (left_rows, right_columns, left_steps) {
            return None;
        }
        for i in 0..rows {
            for j in 0..columns {
                let pairs = (0..steps).map(|l| (self.tiles[left][i][l], self.tiles[right][l][j]));
                let sum = f32::from_bits(self.tiles[out][i][j]);
                self.tiles[out][i][j] = tdpbf16ps(sum, pairs).to_bits();
            }
        }
        Some(())
    }
}
