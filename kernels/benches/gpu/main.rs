//! The kernels' benchmark: `make gpu-bench`. Parts can be named: `map split bytes flip quality`, and `tune`, which is
//! not run unless named. Everything that was timed is also checked against its reference.
#![allow(unsafe_code)] // Launches and raw copies; each says why its addresses are sound.

mod bytes;
mod flip_time;
mod ids;
mod map;
mod placements;
mod split_quality;
mod split_time;
mod timing;

use evenkeel_kernels::device::{CubinCache, DeviceError, Gpu, compiler_version};

/// A name, and what it measures.
type Part = (&'static str, fn(&timing::Timing));

fn main() {
    // Cargo passes flags of its own.
    let parts: Vec<String> = std::env::args().skip(1).filter(|part| !part.starts_with('-')).collect();
    let asked = |part: &str| parts.is_empty() && part != "tune" || parts.iter().any(|p| p == part);
    if asked("quality") {
        split_quality::run();
    }
    let cache = std::env::var_os("EVENKEEL_CUBIN_CACHE").map(CubinCache::new);
    let gpu = match Gpu::open(0, cache) {
        Ok(gpu) => gpu,
        Err(reason @ (DeviceError::NoDriver | DeviceError::NotFound { .. })) => {
            println!("\nskipped: {reason}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    // SAFETY: this program orders everything through one stream.
    unsafe { gpu.context().disable_event_tracking() };
    let name = gpu.context().name().unwrap_or_default();
    println!("{name}, {} multiprocessors, NVRTC {:?}", gpu.multiprocessors(), compiler_version());
    let timing = timing::Timing::new(gpu);
    let gpu_parts: [Part; 6] = [
        ("tune", map::tune),
        ("tune", bytes::tune),
        ("map", map::run),
        ("split", split_time::run),
        ("bytes", bytes::run),
        ("flip", flip_time::run),
    ];
    for (part, run) in gpu_parts {
        if asked(part) {
            run(&timing);
        }
    }
}
