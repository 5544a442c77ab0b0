//! Compiles every kernel in every form that a launcher can choose, for one architecture, and prints what each takes.
//! A spilled register fails. Needs the run-time compiler and no GPU: `make test-kernels`.

use evenkeel_kernels::device::{
    CopyForm, IdType, Layout, MapShape, Program, compile, compiler_version, empty_program,
    fingerprint_program, flip_program, plain_copy_program, plain_read_program, prefix_program,
    slot_copy_program, split_program,
};

/// Model shapes: experts, top-k, ranks, slots of a rank. The ends of every accepted range are among them.
const SHAPES: [(u32, u32, u32, u32); 11] = [
    (256, 8, 32, 9),
    (256, 8, 144, 2),
    (256, 8, 320, 1),
    (128, 8, 32, 5),
    (384, 8, 64, 7),
    (64, 6, 8, 9),
    (160, 6, 8, 22),
    (8, 4, 1, 8),
    (60, 5, 4, 16),
    (1024, 9, 256, 12),
    (1024, 9, 320, 9),
];

fn programs() -> Vec<Program> {
    let mut programs = vec![
        empty_program(),
        plain_copy_program(),
        plain_read_program(),
        flip_program(),
        prefix_program(),
        slot_copy_program(CopyForm::BEST),
        fingerprint_program(),
    ];
    for (experts, top_k, ranks, slots_per_rank) in SHAPES {
        for one_warp in [true, false] {
            programs.push(split_program(experts, ranks, ranks * slots_per_rank, one_warp));
        }
        for ids in [IdType::I32, IdType::I64] {
            for layout in [Layout::None, Layout::Bitmask, Layout::BoolMatrix] {
                let shape = MapShape { experts, top_k, ranks, slots_per_rank, ids, layout };
                for form in shape.forms() {
                    let program = shape.program(form);
                    if !programs.contains(&program) {
                        programs.push(program);
                    }
                }
            }
        }
    }
    programs
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arch = std::env::args().nth(1).unwrap_or_else(|| "sm_90a".to_owned());
    let (major, minor) = compiler_version()?;
    println!("NVRTC {major}.{minor}, {arch}");
    println!("registers  shared  stack  spilled  kernel");
    let (mut compiled, mut spilled) = (0, 0);
    for program in programs() {
        let resources = compile(&program, &arch)?.resources;
        println!(
            "{:>9}  {:>6}  {:>5}  {:>7}  {} {}",
            resources.registers,
            resources.shared_bytes,
            resources.stack_bytes,
            resources.spill_bytes,
            program.name,
            program.constants()
        );
        compiled += 1;
        spilled += usize::from(resources.spill_bytes > 0 || resources.stack_bytes > 0);
        assert!(resources.registers > 0, "the assembler's report was not understood");
    }
    println!("{} passed, {spilled} failed", compiled - spilled);
    if spilled > 0 {
        return Err(format!("{spilled} kernels keep values in local memory").into());
    }
    Ok(())
}
