//! Certificate and key as files: never over others unasked, and keys for their owner only.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Who may read a key, and who a certificate.
const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;
/// Who may enter the directory of an authority.
const DIRECTORY_MODE: u32 = 0o700;

/// Why no certificate was made. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A file is there already.
    #[error("{} exists: give --force to replace it, or another directory", .0.display())]
    Exists(PathBuf),
    /// The directory holds no authority.
    #[error("{} holds no authority: {reason}; make one with `evenkeel certs init`", directory.display())]
    NoAuthority {
        /// The directory.
        directory: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A name that a certificate cannot have.
    #[error("{0}")]
    Name(String),
    /// A time that a certificate cannot last.
    #[error("--days {days}: must be 1 to {max}, the days that the authority itself has left")]
    Days {
        /// The days asked for.
        days: u32,
        /// The most there can be.
        max: i64,
    },
    /// The library does not make it.
    #[error("{0}")]
    Make(#[from] rcgen::Error),
}

impl CertificatesError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            CertificatesError::Exists(_) => "certificate_exists",
            CertificatesError::NoAuthority { .. } => "authority_missing",
            CertificatesError::File { .. } => "certificate_file",
            CertificatesError::Name(_) => "certificate_invalid_name",
            CertificatesError::Days { .. } => "certificate_days",
            CertificatesError::Make(_) => "certificate_not_made",
        }
    }
}

/// The files of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Pair {
    /// `NAME.crt` and `NAME.key`.
    pub(super) fn named(directory: &Path, name: &str) -> Self {
        Self {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        }
    }

    /// Writes both, each as a whole. Nothing is written when one of them is there and `force` is not given.
    pub(super) fn write(&self, certificate: &str, key: &str, force: bool) -> Result<(), CertificatesError> {
        if !force && let Some(there) = [&self.certificate, &self.key].into_iter().find(|path| path.exists()) {
            return Err(CertificatesError::Exists(there.clone()));
        }
        write(&self.key, key, KEY_MODE)?;
        write(&self.certificate, certificate, CERTIFICATE_MODE)
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertificatesError> {
    let failed = |source| CertificatesError::File { path: path.to_owned(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    // What an earlier attempt left, and whatever its mode is.
    let _ = std::fs::remove_file(&partial);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(&partial).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&partial, path).map_err(failed)
}

pub(super) fn read(path: &Path) -> Result<String, CertificatesError> {
    std::fs::read_to_string(path).map_err(|source| CertificatesError::File { path: path.to_owned(), source })
}

pub(super) fn make_directory(path: &Path) -> Result<(), CertificatesError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path);
    made.map_err(|source| CertificatesError::File { path: path.to_owned(), source })
}
