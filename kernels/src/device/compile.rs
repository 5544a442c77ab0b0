//! The run-time compiler.

use super::error::DeviceError;
use super::program::Program;
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;

/// Machine code, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Machine code of one architecture.
    pub cubin: Vec<u8>,
    /// What the assembler says of it.
    pub resources: Resources,
}

/// What a thread of a kernel takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Stack frame, in bytes: local memory, whether spilled or indexed.
    pub stack_bytes: u32,
    /// Bytes of spilled registers written and read back.
    pub spill_bytes: u32,
}

/// Version of the compiler.
pub fn compiler_version() -> Result<(i32, i32), DeviceError> {
    // SAFETY: the probe only opens the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoCompiler);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is present, and both pointers are to live integers.
    match unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result() {
        Ok(()) => Ok((major, minor)),
        Err(error) => Err(DeviceError::Driver { call: "nvrtcVersion", reason: error.to_string() }),
    }
}

/// Destroys the compiler's program on every way out.
struct Open(sys::nvrtcProgram);

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: made by `create_program`, destroyed once. A failure to free changes no result.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles for `arch` (`sm_90a`).
pub fn compile(program: &Program, arch: &str) -> Result<Compiled, DeviceError> {
    compiler_version()?;
    let failed = |log: String| DeviceError::Compile { kernel: program.name, arch: arch.to_owned(), log };
    let text = CString::new(program.text()).expect("sources hold no zero byte");
    let name = CString::new(format!("{}.cu", program.name)).expect("names hold no zero byte");
    let open = Open(result::create_program(&text, Some(&name)).map_err(|error| failed(error.to_string()))?);
    // SAFETY: `open` is a live program; its source and name outlive it.
    let done = unsafe { result::compile_program(open.0, &program.options(arch)) };
    // SAFETY: as above; a failed compilation has a log too.
    let log = unsafe { result::get_program_log(open.0) }.map_err(|error| failed(error.to_string()))?;
    let log: Vec<u8> = log.iter().map(|&c| c.cast_unsigned()).take_while(|&c| c != 0).collect();
    let log = String::from_utf8_lossy(&log).into_owned();
    done.map_err(|error| failed(format!("{error}\n{log}")))?;
    let cubin = cubin(&open).map_err(|error| failed(error.to_string()))?;
    Ok(Compiled { cubin, resources: Resources::read(&log) })
}

fn cubin(open: &Open) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: a compiled program and a live integer.
    unsafe { sys::nvrtcGetCUBINSize(open.0, &mut size) }.result()?;
    let mut bytes = vec![0u8; size];
    // SAFETY: the buffer has the size that the compiler asked for.
    unsafe { sys::nvrtcGetCUBIN(open.0, bytes.as_mut_ptr().cast()) }.result()?;
    Ok(bytes)
}

impl Resources {
    /// Reads the assembler's report; of several entry points the most of each.
    pub(super) fn read(log: &str) -> Self {
        let mut most = Self::default();
        let mut before = "0";
        let mut older = "";
        for word in log.split_whitespace() {
            let number = |text: &str| text.parse().unwrap_or(0);
            match word.trim_end_matches(',') {
                "registers" => most.registers = most.registers.max(number(before)),
                "smem" if before == "bytes" => most.shared_bytes = most.shared_bytes.max(number(older)),
                "stack" if before == "bytes" => most.stack_bytes = most.stack_bytes.max(number(older)),
                "spill" if before == "bytes" => most.spill_bytes = most.spill_bytes.max(number(older)),
                _ => {}
            }
            (older, before) = (before, word);
        }
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_read() {
        let log = "ptxas info    : 37 bytes gmem\n\
            ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 3456 bytes smem";
        let expected = Resources { registers: 40, shared_bytes: 3456, stack_bytes: 8, spill_bytes: 12 };
        assert_eq!(Resources::read(log), expected);
        assert_eq!(Resources::read(""), Resources::default());
    }
}
