//! The signature of a message: HMAC-SHA256 of its body, with the secret of `--notify-secret-file`.

use std::path::{Path, PathBuf};

use ring::hmac;

use crate::printable::hex;

/// The file of a secret. It is read for each message, so that it can be replaced; the secret is stored nowhere else.
#[derive(Debug, Clone)]
pub struct Secret(PathBuf);

impl Secret {
    /// Checks that the file has a secret.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn open(path: &Path) -> Result<Self, String> {
        let secret = Self(path.to_owned());
        secret.read().map(|_| secret)
    }

    fn read(&self) -> Result<String, String> {
        let path = self.0.display();
        let text = std::fs::read_to_string(&self.0)
            .map_err(|error| format!("cannot read the secret {path}: {error}; check --notify-secret-file"))?;
        // A shell's `$(cat FILE)` removes the end of the line, too.
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(format!("the secret {path} is empty; write one, as with openssl rand -hex 32")),
            text => Ok(text.to_owned()),
        }
    }

    /// The value of the header `Tercile-Signature`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn sign(&self, body: &[u8]) -> Result<String, String> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.read()?.as_bytes());
        Ok(format!("sha256={}", hex(hmac::sign(&key, body).as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_standard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        // Test case 2 of RFC 4231.
        std::fs::write(&path, "Jefe\n").unwrap();
        let secret = Secret::open(&path).unwrap();
        assert_eq!(
            secret.sign(b"what do ya want for nothing?").unwrap(),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        std::fs::write(&path, "\n").unwrap();
        assert!(Secret::open(&path).unwrap_err().contains("is empty"));
        assert!(secret.sign(b"").is_err());
    }
}
