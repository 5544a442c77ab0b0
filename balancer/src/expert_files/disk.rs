//! Bounded reads, and writes that are whole or not at all.

use super::error::FileError;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Largest file that is read: a thousand layers of the most experts as 8-byte numbers. Real ones are below 2 MB.
pub(super) const FILE_BYTES_MAX: u64 = 256 << 20;

/// The whole content of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let name = || path.display().to_string();
    let unreadable = |source| FileError::Unreadable { path: name(), source };
    let mut content = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let stated = file.metadata().map_or(0, |data| data.len());
    if stated <= FILE_BYTES_MAX {
        // A pipe states no length, so what arrives is bounded as well.
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(unreadable)?;
    }
    if stated.max(content.len() as u64) > FILE_BYTES_MAX {
        return Err(FileError::TooLarge { path: name() });
    }
    Ok(content)
}

/// Writes a file so that a reader sees all of it or what was there before; `-` is stdout.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let unwritable = |source| FileError::Unwritable { path: path.display().to_string(), source };
    if path.as_os_str() == "-" {
        let mut stdout = std::io::stdout().lock();
        return stdout.write_all(content).and_then(|()| stdout.flush()).map_err(unwritable);
    }
    // A link is followed, so that its target is replaced and not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // A device or a pipe (/dev/null, /dev/stdout) is written to: a rename would replace it.
    if target.metadata().is_ok_and(|data| !data.is_file() && !data.is_dir()) {
        return std::fs::write(target, content).map_err(unwritable);
    }
    replace(&target, content).map_err(unwritable)
}

fn replace(target: &Path, content: &[u8]) -> std::io::Result<()> {
    if target.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As a file made by a shell would be: readable by others as far as the umask lets them.
    let mut partial = tempfile::Builder::new()
        .prefix(".evenkeel-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    partial.write_all(content)?;
    partial.as_file().sync_all()?;
    partial.persist(target).map(|_| ()).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        write_whole(&path, b"first").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_ne!(path.metadata().unwrap().permissions().mode() & 0o400, 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let into_nothing = write_whole(&folder.path().join("no/plan.json"), b"x").unwrap_err();
        assert_eq!(into_nothing.code(), "experts_file_unwritable");
        assert_eq!(write_whole(folder.path(), b"x").unwrap_err().code(), "experts_file_unwritable");
    }

    #[test]
    fn a_device_is_written_to_and_stays_a_device() {
        write_whole(Path::new("/dev/null"), b"x").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }
}
