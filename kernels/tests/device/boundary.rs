//! What runs once a step: flip and prefix; and what happens without a driver or with a damaged cache.

use crate::gpu::{Buffer, below, gpu};
use cudarc::driver::sys;
use evenkeel_kernels::device::{
    CubinCache, DeviceError, FlipKernel, Gpu, PrefixKernel, PrefixShape, gpu_count,
};
use evenkeel_kernels::flip::flip;
use evenkeel_kernels::prefix::prefix;
use evenkeel_simulate::expert_loads::SplitMix64;

#[test]
fn a_missing_gpu_is_an_error_and_no_panic() {
    let error = Gpu::open(gpu_count(), None).unwrap_err();
    assert!(matches!(error, DeviceError::NoDriver | DeviceError::NotFound { .. }), "{error}");
}

#[test]
fn a_captured_flip_reads_the_armed_words_at_each_replay() {
    let Some(gpu) = gpu() else { return };
    let kernel = FlipKernel::load(&gpu).unwrap();
    let layers = 300;
    let active = Buffer::of(&gpu, &vec![0xA5A5_A5A5u32; layers]);
    let taken = Buffer::of(&gpu, &vec![0xA5A5_A5A5u32; layers]);
    let mut armed = unsafe { gpu.context().alloc_pinned::<u32>(layers) }.unwrap();
    armed.as_mut_slice().unwrap().fill(0);
    let address = armed.as_ptr().unwrap() as u64;
    let stream = gpu.stream();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    unsafe { kernel.launch(stream.cu_stream(), active.address(), address, taken.address(), layers as u32) }
        .unwrap();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("a captured graph");
    let mut draw = SplitMix64::new(6);
    for sequence in 1..5u32 {
        let words: Vec<u32> = (0..layers).map(|_| sequence << 1 | below(&mut draw, 2) as u32).collect();
        armed.as_mut_slice().unwrap().copy_from_slice(&words);
        graph.launch().unwrap();
        let (mut expected_active, mut expected_taken) = (vec![9; layers], vec![9; layers]);
        flip(&words, &mut expected_active, &mut expected_taken);
        assert_eq!(active.read(&gpu), expected_active);
        assert_eq!(taken.read(&gpu), expected_taken);
    }
}

#[test]
fn prefixes_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let kernel = PrefixKernel::load(&gpu).unwrap();
    let mut draw = SplitMix64::new(7);
    for (layers, slots, stride) in [(1, 1, 1), (58, 288, 320), (3, 33, 40), (2, 4096, 4416)] {
        let counts: Vec<u32> = (0..layers * stride).map(|_| below(&mut draw, 5000) as u32).collect();
        let on_device = Buffer::of(&gpu, &counts);
        let offsets = Buffer::of(&gpu, &vec![0xA5A5_A5A5u32; layers * (slots + 1)]);
        let shape = PrefixShape { layers: layers as u32, slots: slots as u32, stride: stride as u32 };
        let stream = gpu.stream().cu_stream();
        unsafe { kernel.launch(stream, on_device.address(), offsets.address(), shape) }.unwrap();
        let expected: Vec<u32> = counts.chunks(stride).flat_map(|row| prefix(&row[..slots])).collect();
        assert_eq!(offsets.read(&gpu), expected);
    }
}

#[test]
fn a_damaged_cache_entry_is_compiled_again() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let load = || {
        let gpu = Gpu::open(0, Some(CubinCache::new(folder.path()))).unwrap();
        FlipKernel::load(&gpu).unwrap();
    };
    load();
    let entry = std::fs::read_dir(folder.path()).unwrap().next().expect("an entry").unwrap().path();
    let key = entry.file_stem().unwrap().to_str().unwrap().to_owned();
    let cache = CubinCache::new(folder.path());
    let whole = std::fs::read(&entry).unwrap();
    std::fs::write(&entry, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(cache.read(&key), None);
    load();
    assert!(cache.read(&key).is_some());
}
