//! Certificates as an operator makes them: by `evenkeel certs`.

use crate::process::program;
use evenkeel_transport::security::SecuritySettings;
use evenkeel_transport::{Security, TlsFiles};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An authority in a directory, and what it has issued there.
#[derive(Debug)]
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Makes the authority of a cluster.
    pub fn init(directory: &Path, cluster: &str) -> Self {
        let made = Self { directory: directory.to_owned() };
        made.run(&["init", "--cluster", cluster]);
        made
    }

    /// Issues a certificate: `["agent", "n-1"]`, `["balancer", "--force"]`.
    pub fn issue(&self, words: &[&str]) {
        self.run(&[&["issue"], words].concat());
    }

    #[track_caller]
    fn run(&self, words: &[&str]) {
        let Output { status, stderr, .. } = self.command(words);
        assert!(status.success(), "{words:?}: {}", String::from_utf8_lossy(&stderr));
    }

    /// Runs `evenkeel certs`.
    pub fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(program("evenkeel"));
        command.arg("certs").args(words).arg("--dir").arg(&self.directory);
        command.output().expect("certificates are made")
    }

    /// The files of what was issued: `agent-n-1`, `balancer`.
    pub fn files(&self, name: &str) -> TlsFiles {
        let at = |name: String| self.directory.join(name);
        TlsFiles {
            ca: at("ca.crt".into()),
            certificate: at(format!("{name}.crt")),
            key: at(format!("{name}.key")),
        }
    }

    /// The flags that name the files.
    pub fn flags(&self, name: &str) -> [(&'static str, String); 3] {
        let TlsFiles { ca, certificate, key } = self.files(name);
        let text = |path: PathBuf| path.display().to_string();
        [("--tls-ca", text(ca)), ("--tls-cert", text(certificate)), ("--tls-key", text(key))]
    }

    /// Credentials for a connection of the test itself.
    pub fn security(&self, name: &str) -> Security {
        let TlsFiles { ca, certificate, key } = self.files(name);
        let settings = SecuritySettings {
            ca: Some(ca),
            certificate: Some(certificate),
            key: Some(key),
            ..SecuritySettings::default()
        };
        settings.resolve(None).expect("certificates of ours")
    }
}
