//! Files of a directory, by unit and number; the oldest go when there are too many bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Files that the bytes of a unit are spread over: so much of the recording is lost at once.
const FILES: u64 = 8;

/// The files of one unit.
pub(super) struct Files {
    dir: PathBuf,
    unit: String,
    bytes_max: u64,
    next: u64,
    open: Option<Open>,
}

struct Open {
    out: BufWriter<File>,
    bytes: u64,
}

impl Files {
    /// Goes on after the files that are there.
    pub(super) fn new(dir: &Path, unit: &str, bytes_max: u64) -> io::Result<Self> {
        let mut files = Self { dir: dir.to_owned(), unit: unit.to_owned(), bytes_max, next: 1, open: None };
        files.next = files.numbers()?.last().map_or(1, |last| last + 1);
        Ok(files)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{}-{number:08}.jsonl", self.unit))
    }

    /// Numbers of the unit's files, in order.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
            if let Some((unit, number)) = stem.and_then(|stem| stem.rsplit_once('-'))
                && unit == self.unit
            {
                numbers.extend(number.parse::<u64>());
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Whether there is a file to write on to.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the file is as long as it shall be.
    pub(super) fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.bytes >= self.bytes_max / FILES)
    }

    /// Ends the file and begins the next; then the oldest go, until there is room for another.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if let Some(mut open) = self.open.take() {
            open.out.flush()?;
        }
        let file = File::create_new(self.path(self.next))?;
        self.next += 1;
        self.open = Some(Open { out: BufWriter::new(file), bytes: 0 });
        self.remove_oldest()
    }

    fn remove_oldest(&self) -> io::Result<()> {
        let kept_max = self.bytes_max - self.bytes_max / FILES;
        let mut bytes = 0;
        // From the newest on; the one that is written to is the last.
        for number in self.numbers()?.into_iter().rev() {
            let path = self.path(number);
            bytes += fs::metadata(&path)?.len();
            if bytes > kept_max && number + 1 != self.next {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Writes to the file. After an error there is none.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let open = self.open.as_mut().ok_or_else(|| io::Error::other("no file is open"))?;
        let mut counted = Counted { out: &mut open.out, bytes: &mut open.bytes };
        let written = write(&mut counted);
        if written.is_err() {
            self.open = None;
        }
        written
    }

    /// Hands what is buffered to the system: it outlives this process.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let flushed = self.open.as_mut().map_or(Ok(()), |open| open.out.flush());
        if flushed.is_err() {
            self.open = None;
        }
        flushed
    }
}

struct Counted<'a> {
    out: &'a mut BufWriter<File>,
    bytes: &'a mut u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        *self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
