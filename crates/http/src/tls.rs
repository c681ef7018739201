//! TLS with certificate files that are reloaded while the server runs.
//!
//! Input: a certificate chain and its key as PEM files. Output: handshakes. An invalid new pair is logged, and the old one
//! stays in use.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::{Accept, TlsAcceptor};

/// Polling interval for changed files.
const INTERVAL: Duration = Duration::from_millis(500);

/// Reason why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is unreadable, or contains no certificate or no private key.
    #[error("cannot read {wanted} from {}: {source}", path.display())]
    Unreadable {
        /// Certificates, or a private key.
        wanted: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The two do not belong together, or are of an unknown kind.
    #[error("{} and {} are no pair to serve with: {source}", cert.display(), key.display())]
    Pair {
        /// The file of the certificate chain.
        cert: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// The certificate in use.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    now: RwLock<TlsAcceptor>,
}

impl Tls {
    /// Reads a certificate chain and its private key.
    ///
    /// # Errors
    /// If one of the files cannot be read, or if they do not belong together.
    pub fn open(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let now = RwLock::new(load(cert, key)?);
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), now })
    }

    /// Starts a handshake.
    pub(crate) fn accept(&self, stream: TcpStream) -> Accept<TcpStream> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).accept(stream)
    }

    /// Reloads changed files, for the lifetime of the server.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut seen = self.stamps();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let stamps = self.stamps();
            if stamps == seen {
                continue;
            }
            seen = stamps;
            match load(&self.cert, &self.key) {
                Ok(fresh) => {
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                    tracing::info!("serving with the new certificate of {}", self.cert.display());
                }
                // Possibly only one of the two files has been replaced; the next change is tried again.
                Err(error) => tracing::warn!("the certificate stays as it was: {error}"),
            }
        }
    }

    /// Fingerprints of the two files.
    fn stamps(&self) -> [Option<(u64, i64, i64, u64)>; 2] {
        [&self.cert, &self.key].map(|path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
        })
    }
}

fn load(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let unreadable = |wanted, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Unreadable { wanted, path, source }
    };
    let chain = chain.map_err(unreadable("certificates", cert))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(unreadable("a private key", key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
