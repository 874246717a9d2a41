//! A private certificate authority, created by `openssl`, and a server certificate that it has signed.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

/// The authority. Its files are removed with it.
pub(crate) struct Authority {
    directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self { directory: tempfile::tempdir().unwrap() };
        let path = |name: &str| authority.path(name).display().to_string();
        let names = "basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1\n";
        fs::write(authority.path("names"), names).unwrap();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
        let (ca, ca_key) = (path("ca.pem"), path("ca-key.pem"));
        let own = [&ca_key, "-x509", "-days", "2", "-subj", "/CN=authority", "-out", &ca];
        openssl(&[&["req"], &key[..], &own].concat());
        let (request, server_key) = (path("request.pem"), path("key.pem"));
        openssl(&[&["req"], &key[..], &[&server_key, "-subj", "/CN=server", "-out", &request]].concat());
        let signing = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
        let (names, cert) = (path("names"), path("cert.pem"));
        openssl(&[&signing[..], &["-CAcreateserial", "-extfile", &names, "-out", &cert]].concat());
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file with its certificate, for clients that trust it.
    pub(crate) fn ca_file(&self) -> String {
        self.path("ca.pem").display().to_string()
    }

    /// The TLS configuration of a server on 127.0.0.1 with a certificate of this authority.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        let cert = CertificateDer::from_pem_file(self.path("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path("key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key);
        Arc::new(config.unwrap())
    }
}

fn openssl(arguments: &[&str]) {
    let status = Command::new("openssl").args(arguments).stderr(Stdio::null()).status();
    assert!(status.unwrap().success(), "openssl {arguments:?}");
}
