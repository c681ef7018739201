//! Health probe: checks whether a tercile server answers at an address, with or without TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

const PATIENCE: Duration = Duration::from_secs(2);

/// Requests `/health/live` without TLS and then with TLS.
pub async fn alive(address: SocketAddr) -> bool {
    let plain = async { ask(TcpStream::connect(address).await.ok()?, address).await };
    let over_tls = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let stream = connector()?.connect(ServerName::IpAddress(address.ip().into()), stream).await.ok()?;
        ask(stream, address).await
    };
    let answered = async { plain.await.is_some() || over_tls.await.is_some() };
    tokio::time::timeout(PATIENCE, answered).await.unwrap_or(false)
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, address: SocketAddr) -> Option<()> {
    let request = format!("GET /health/live HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // The bytes received count, however the connection ends.
    let _ = stream.take(4096).read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).contains(r#""status":"live""#).then_some(())
}

fn connector() -> Option<TlsConnector> {
    let provider = Arc::new(ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().ok()?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    Some(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

/// Accepts any certificate: the probe sends and receives nothing secret, and certificates rarely name IP addresses.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
