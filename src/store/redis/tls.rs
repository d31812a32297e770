//! Certificates, where those of the platform are not the ones.

use super::address::config;
use crate::store::StoreResult;
use ::redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, TlsCertificates};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;

/// Whom a pod trusts over TLS, and what it shows of itself; for
/// [`Redis::with_tls`](super::Redis::with_tls).
///
/// Unless told otherwise it trusts the certificates of the platform, or of the files that `SSL_CERT_FILE` or
/// `SSL_CERT_DIR` name, and shows none.
#[derive(Clone, Default)]
pub struct Tls {
    roots: Option<Vec<u8>>,
    client: Option<ClientTlsConfig>,
}

impl Tls {
    /// The certificates of the platform.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts servers whose certificates go back to one of these, in PEM, and no others: an authority of
    /// one's own. Default: those of the platform.
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Shows this certificate, with what it goes back to, to servers that ask for one, as Redis does unless
    /// `tls-auth-clients` is `no`. Both in PEM; the key as PKCS #8, PKCS #1 or SEC 1. Default: none.
    #[must_use]
    pub fn client_certificate(
        mut self,
        chain: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.client = Some(ClientTlsConfig {
            client_cert: chain.into(),
            client_key: key.into(),
        });
        self
    }

    /// # Errors
    /// `Config`, of what cannot be read, and for an address without TLS.
    pub(super) fn prepare(&self, info: ConnectionInfo) -> StoreResult<ConnectionInfo> {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Err(config("certificates need a rediss:// address".to_owned()));
        }
        let chain = self.client.as_ref().map(|client| &client.client_cert);
        for (pem, what) in [(self.roots.as_ref(), "root"), (chain, "client")] {
            if pem.is_some_and(|pem| !has_certificates(pem)) {
                return Err(config(format!("there is no {what} certificate in PEM")));
            }
        }
        let certificates = TlsCertificates {
            client_tls: self.client.clone(),
            root_cert: self.roots.clone(),
        };
        // Its errors may repeat a part of what they could not read.
        match Client::build_with_tls(info, certificates) {
            Ok(client) => Ok(client.get_connection_info().clone()),
            Err(_) => Err(config("a certificate or key cannot be read".to_owned())),
        }
    }
}

fn has_certificates(pem: &[u8]) -> bool {
    let mut certificates = CertificateDer::pem_slice_iter(pem);
    certificates.next().is_some_and(|first| first.is_ok())
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("root_certificates", &self.roots.as_ref().map(|_| "…"))
            .field("client_certificate", &self.client.as_ref().map(|_| "…"))
            .finish()
    }
}
