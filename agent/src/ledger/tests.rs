use super::disk::{Step, aside};
use super::*;
use evenkeel_core::ids::UnitId;
use evenkeel_core::topology::{Role, UnitShape};

/// The record of a term, with the boot plan or its child.
fn record(revision: u64, child: bool) -> Record {
    let shape = UnitShape {
        role: Role::Decode,
        layers: 1,
        experts: 2,
        top_k: 1,
        ranks: 2,
        slots_per_rank: 1,
        spare_per_rank: 1,
        expert_bytes: 8,
    };
    let boot = Plan::boot(UnitId::new("u").unwrap(), &shape);
    let boot = Arc::new(boot);
    let plan = if child { Arc::new(boot.child(boot.layers.clone())) } else { Arc::clone(&boot) };
    Record { term: Term { generation: 1, revision }, plan: Some(plan), beside: child.then_some(boot) }
}

fn open(directory: &Path) -> Result<Record, Failure> {
    Ledger::open(directory).map(|ledger| ledger.record().clone())
}

fn files(directory: &Path) -> [PathBuf; 2] {
    ["ledger.bin", "ledger.copy"].map(|name| directory.join(name))
}

/// A directory whose ledger keeps `record`.
fn kept(record: &Record) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    Ledger::open(directory.path()).unwrap().write(record.clone()).unwrap();
    directory
}

#[test]
fn a_record_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(directory.path()).unwrap();
    assert_eq!(*ledger.record(), Record::default());
    for written in [Record { plan: None, beside: None, ..record(7, true) }, record(7, true)] {
        ledger.write(written.clone()).unwrap();
        assert_eq!(open(directory.path()).unwrap(), written);
    }
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_record() {
    let (old, new) = (record(7, false), record(8, true));
    let bytes = encode(&new);
    let steps: Vec<(usize, Step)> =
        [0, 1].into_iter().flat_map(|file| Step::ALL.map(|s| (file, s))).collect();
    for done in 0..=steps.len() {
        // The step after those that were done may be half done: a write cut off at any byte.
        let cuts = match steps.get(done) {
            Some((_, Step::Write)) => 0..bytes.len() + 1,
            _ => 0..1,
        };
        for cut in cuts {
            let directory = kept(&old);
            let files = files(directory.path());
            for (file, step) in &steps[..done] {
                step.perform(&files[*file], &bytes).unwrap();
            }
            if let Some((file, Step::Write)) = steps.get(done) {
                fs::write(aside(&files[*file]), &bytes[..cut]).unwrap();
            }
            let found = open(directory.path()).unwrap();
            let renamed = steps[..done].contains(&(0, Step::Rename));
            assert_eq!(
                found,
                if renamed { new.clone() } else { old.clone() },
                "after {done} steps, {cut} bytes"
            );
            // What is found once is found again, and can be gone on from.
            assert_eq!(open(directory.path()).unwrap(), found);
            Ledger::open(directory.path()).unwrap().write(new.clone()).unwrap();
            assert_eq!(open(directory.path()).unwrap(), new);
        }
    }
}

#[test]
fn a_crash_of_the_first_write_leaves_nothing_or_the_record() {
    let bytes = encode(&record(1, false));
    for done in 0..Step::ALL.len() {
        let directory = tempfile::tempdir().unwrap();
        for step in &Step::ALL[..done] {
            step.perform(&files(directory.path())[0], &bytes).unwrap();
        }
        let expected = if done > 2 { record(1, false) } else { Record::default() };
        assert_eq!(open(directory.path()).unwrap(), expected, "after {done} steps");
    }
}

#[test]
fn a_file_cut_or_changed_at_any_byte_is_replaced_by_the_other() {
    let whole = record(7, true);
    let bytes = encode(&whole);
    let directory = kept(&whole);
    let paths = files(directory.path());
    let check = |damaged: &[u8]| {
        for path in &paths {
            fs::write(path, damaged).unwrap();
            assert_eq!(open(directory.path()).unwrap(), whole);
            assert_eq!(fs::read(path).unwrap(), bytes, "it is mended");
        }
    };
    for at in 0..bytes.len() {
        check(&bytes[..at]);
        let mut other = bytes.clone();
        other[at] ^= 1;
        check(&other);
    }
    check(&[bytes.as_slice(), &[0]].concat());
    for path in &paths {
        fs::remove_file(path).unwrap();
        assert_eq!(open(directory.path()).unwrap(), whole);
    }
}

#[test]
fn two_damaged_files_are_an_error_with_a_remedy() {
    let directory = kept(&record(7, true));
    let [first, copy] = files(directory.path());
    fs::write(&first, b"EVKLEDG2").unwrap();
    fs::write(&copy, b"").unwrap();
    for only_the_copy in [false, true] {
        if only_the_copy {
            fs::remove_file(&first).unwrap();
        }
        let failure = open(directory.path()).unwrap_err();
        assert_eq!(failure.code, "ledger_corrupt");
        assert!(failure.message.contains("move both files away"), "{failure}");
    }
}

#[test]
fn a_write_that_fails_leaves_the_record_and_the_next_one_is_kept() {
    for blocked in files(Path::new("")) {
        let directory = kept(&record(7, false));
        let mut ledger = Ledger::open(directory.path()).unwrap();
        // The file is written aside first: a directory in that place is in its way.
        let obstacle = aside(&directory.path().join(blocked));
        fs::create_dir(&obstacle).unwrap();
        let error = ledger.write(record(8, true)).unwrap_err();
        assert_eq!(error.code, RefusalCode::StateUnwritable);
        assert_eq!(*ledger.record(), record(7, false));
        fs::remove_dir(&obstacle).unwrap();
        ledger.write(record(9, true)).unwrap();
        assert_eq!(open(directory.path()).unwrap(), record(9, true));
    }
}

#[test]
fn a_full_disk_is_told_from_a_broken_one() {
    for (kind, full) in [
        (io::ErrorKind::StorageFull, true),
        (io::ErrorKind::QuotaExceeded, true),
        (io::ErrorKind::PermissionDenied, false),
    ] {
        assert_eq!(is_full(&io::Error::from(kind)), full);
    }
    assert!(is_full(&io::Error::from_raw_os_error(28)), "ENOSPC");
}
