//! Addresses: how many servers one names, and in which roles.

use super::cluster::Cluster;
use super::sentinel::Sentinels;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::StoreResult;
use ::redis::io::tcp::TcpSettings;
use ::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use std::fmt;

const URL_FORM: &str = "expected redis://[[user]:password@]host[:port][/db]";
const SENTINEL_FORM: &str =
    "expected redis+sentinel://[[user]:password@]host[:port],…/primary-name[/db]";
const CLUSTER_FORM: &str = "expected redis+cluster://[[user]:password@]host[:port],…";
/// Where sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26379;

/// What is done to how each server is connected to, before it is.
pub(super) type Prepare<'a> = &'a dyn Fn(ConnectionInfo) -> StoreResult<ConnectionInfo>;

/// What stands at an address.
#[derive(Clone)]
pub(super) enum Address {
    /// One server.
    Server(Box<Client>),
    /// The primary that sentinels name at the time.
    Sentinel(Sentinels),
    /// The nodes of a cluster.
    Cluster(Cluster),
}

impl Address {
    pub(super) fn read(url: &str, prepare: Prepare<'_>) -> StoreResult<Self> {
        let url = url.trim();
        if wants_tls(url) && !cfg!(feature = "tls") {
            return Err(config(
                "a rediss:// address needs the feature `tls`".to_owned(),
            ));
        }
        #[cfg(feature = "tls")]
        if wants_tls(url) {
            install_crypto_provider();
        }
        match many_hosts(url) {
            None => {
                let info = prepare(info(url, URL_FORM)?)?;
                open(info, URL_FORM).map(|client| Self::Server(Box::new(client)))
            }
            Some(many) if many.mode.eq_ignore_ascii_case("sentinel") => many.sentinels(prepare),
            Some(many) if many.mode.eq_ignore_ascii_case("cluster") => many.cluster(prepare),
            Some(_) => Err(config("unknown kind of address".to_owned())),
        }
    }

    /// Whether it is one server, which is reached over TLS.
    pub(super) fn is_tls(&self) -> bool {
        let Self::Server(client) = self else {
            return false;
        };
        matches!(
            client.get_connection_info().addr(),
            ConnectionAddr::TcpTls { .. }
        )
    }

    /// The address without secrets.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Server(client) => {
                let info = client.get_connection_info();
                described(info.addr(), info.redis_settings().db())
            }
            Self::Sentinel(sentinels) => sentinels.describe(),
            Self::Cluster(cluster) => cluster.describe(),
        }
    }
}

/// The parts of `scheme+mode://[user[:password]@]host[:port],…[/path][?query]`.
struct ManyHosts<'a> {
    scheme: &'a str,
    mode: &'a str,
    /// With its `@`, or empty.
    user: &'a str,
    hosts: Vec<&'a str>,
    path: Vec<&'a str>,
    query: &'a str,
}

/// The parts of an address that names many hosts; `None` if the scheme is not one of those.
fn many_hosts(url: &str) -> Option<ManyHosts<'_>> {
    let (scheme, rest) = url.split_once("://")?;
    let (scheme, mode) = scheme.split_once('+')?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let at = authority.rfind('@').map_or(0, |at| at + 1);
    let (user, hosts) = authority.split_at(at);
    Some(ManyHosts {
        scheme,
        mode,
        user,
        hosts: hosts.split(',').collect(),
        path: path.split('/').filter(|part| !part.is_empty()).collect(),
        query,
    })
}

impl ManyHosts<'_> {
    fn sentinels(&self, prepare: Prepare<'_>) -> StoreResult<Address> {
        let (name, db) = match self.path[..] {
            [name] => (name, "0"),
            [name, db] => (name, db),
            _ => return Err(config(SENTINEL_FORM.to_owned())),
        };
        let user = self.parameter("sentinel_user").unwrap_or_default();
        let user = match self.parameter("sentinel_password") {
            Some(password) => format!("{user}:{password}@"),
            None if user.is_empty() => String::new(),
            None => return Err(config("a sentinel_user needs a sentinel_password".into())),
        };
        let mut sentinels = Vec::with_capacity(self.hosts.len());
        for host in &self.hosts {
            let url = format!("{}://{user}{}", self.scheme, with_port(host, SENTINEL_PORT));
            let info = prepare(info(&url, SENTINEL_FORM)?)?;
            sentinels.push(open(info, SENTINEL_FORM)?);
        }
        // The host is of no meaning here: the sentinels give one.
        let primary = format!("{}://{}localhost/{db}", self.scheme, self.user);
        let primary = settled(prepare(info(&primary, SENTINEL_FORM)?)?);
        Ok(Address::Sentinel(Sentinels::new(sentinels, name, primary)))
    }

    fn cluster(&self, prepare: Prepare<'_>) -> StoreResult<Address> {
        // A cluster has no other database than 0.
        if !(self.path.is_empty() || self.path == ["0"]) {
            return Err(config(CLUSTER_FORM.to_owned()));
        }
        let seed = |host: &&str| {
            let url = format!("{}://{}{host}", self.scheme, self.user);
            Ok(settled(prepare(info(&url, CLUSTER_FORM)?)?))
        };
        let seeds: Vec<_> = self.hosts.iter().map(seed).collect::<StoreResult<_>>()?;
        let cluster = Cluster::new(&seeds).ok_or_else(|| config(CLUSTER_FORM.to_owned()))?;
        Ok(Address::Cluster(cluster))
    }

    /// The value of a parameter as it stands there, percent signs and all.
    fn parameter(&self, name: &str) -> Option<&str> {
        let mut pairs = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

fn with_port(host: &str, port: u16) -> String {
    let bare = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    match bare.contains(':') {
        true => host.to_owned(),
        false => format!("{host}:{port}"),
    }
}

fn info(url: &str, form: &str) -> StoreResult<ConnectionInfo> {
    let info = url
        .into_connection_info()
        .map_err(|error| refused(&error, form))?;
    check(&info)?;
    Ok(info)
}

/// What all connections have in common.
fn settled(info: ConnectionInfo) -> ConnectionInfo {
    let redis = info
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP2);
    let tcp = TcpSettings::default().set_nodelay(true);
    info.set_redis_settings(redis).set_tcp_settings(tcp)
}

fn open(info: ConnectionInfo, form: &str) -> StoreResult<Client> {
    Client::open(settled(info)).map_err(|error| refused(&error, form))
}

/// A client of the server at `host` and `port` that is otherwise as `info` says.
pub(super) fn client_at(info: &ConnectionInfo, host: &str, port: u16) -> StoreResult<Client> {
    let host = host.to_owned();
    let addr = match info.addr() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    Client::open(info.clone().set_addr(addr)).map_err(|error| refused(&error, URL_FORM))
}

/// An address without user and password.
pub(super) fn described(addr: &ConnectionAddr, db: i64) -> String {
    match addr {
        ConnectionAddr::Tcp(host, port) => format!("redis://{}:{port}/{db}", Host(host)),
        ConnectionAddr::TcpTls { host, port, .. } => {
            format!("rediss://{}:{port}/{db}", Host(host))
        }
        other => format!("unix://{other}?db={db}"),
    }
}

/// A host as addresses name it: IPv6 in brackets.
pub(super) struct Host<'a>(pub(super) &'a str);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.contains(':') {
            true => write!(f, "[{}]", self.0),
            false => f.write_str(self.0),
        }
    }
}

fn wants_tls(url: &str) -> bool {
    let scheme = url.split([':', '+']).next().unwrap_or_default();
    ["rediss", "valkeys"]
        .iter()
        .any(|tls| scheme.eq_ignore_ascii_case(tls))
}

fn check(info: &ConnectionInfo) -> StoreResult<()> {
    if info.redis_settings().db() < 0 {
        return Err(config("the database number is negative".to_owned()));
    }
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => Err(config(
            "the check of certificates cannot be switched off".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Why the client library refused an address. Its errors read `reason - kind[: detail]`; the reason is
/// a constant text, the detail may repeat a part of the address.
fn refused(error: &::redis::RedisError, form: &str) -> StoreError {
    let text = error.to_string();
    let reason = text.split(" - ").next().unwrap_or_default();
    config(format!("{reason}; {form}"))
}

pub(super) fn config(detail: String) -> StoreError {
    StoreError::new(StoreErrorKind::Config, "read the address").with_detail(detail)
}

#[cfg(feature = "tls")]
fn install_crypto_provider() {
    use rustls::crypto::{CryptoProvider, ring};
    if CryptoProvider::get_default().is_none() {
        // Losing a race means that somebody else has installed one.
        let _ = ring::default_provider().install_default();
    }
}
