//! Certificate authorities and the certificates that they sign, new for each test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::replace;

/// A certificate authority, and a directory for its files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn generate() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "a test's authority");
        let key = KeyPair::generate().unwrap();
        let authority = Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::write(authority.path("ca.crt"), authority.pem()).unwrap();
        authority
    }

    pub fn pem(&self) -> String {
        self.issuer.as_ref().pem()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the path of the authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.path("ca.crt")
    }

    fn sign(
        &self,
        names: Vec<SanType>,
        subject: &[(DnType, &str)],
        usage: ExtendedKeyUsagePurpose,
    ) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// Signs a server certificate for `localhost` and `pdp.test`.
    pub fn server(&self) -> Pair {
        let names =
            ["localhost", "pdp.test"].map(|name| SanType::DnsName(name.try_into().unwrap()));
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        self.sign(names.into(), &[(DnType::CommonName, "pdp")], usage)
    }

    /// Signs a client certificate.
    pub fn client(&self, names: Vec<SanType>, subject: &[(DnType, &str)]) -> Pair {
        self.sign(names, subject, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Writes the server's pair to `tls.crt` and `tls.key`, and returns the options that name them.
    pub fn tls_options(&self, pair: &Pair) -> [String; 4] {
        let (certificate, key) = (self.path("tls.crt"), self.path("tls.key"));
        pair.write(&certificate, &key);
        [
            "--tls-cert".to_owned(),
            path_string(&certificate),
            "--tls-key".to_owned(),
            path_string(&key),
        ]
    }

    /// Connects to `address` over TLS, with ALPN for HTTP/2.
    pub async fn connect_tls(&self, address: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.as_ref().der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = "pdp.test".try_into().unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, socket).await.unwrap()
    }

    /// Returns the TLS configuration of a client that trusts this authority.
    pub fn client_tls(&self, own: Option<&Pair>) -> ClientTlsConfig {
        let config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.pem()))
            .domain_name("pdp.test");
        match own {
            Some(pair) => config.identity(Identity::from_pem(&pair.certificate, &pair.key)),
            None => config,
        }
    }
}

impl Pair {
    /// Replaces both files, each atomically.
    pub fn write(&self, certificate: &Path, key: &Path) {
        replace(certificate, &self.certificate);
        replace(key, &self.key);
    }
}

pub fn path_string(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Connects to `address` over TLS.
pub async fn connect(
    address: &str,
    tls: ClientTlsConfig,
) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("https://{address}"))?
        .tls_config(tls)?
        .connect()
        .await
}
