//! `tercile scheduler`

use std::io::Write as _;
use std::net::SocketAddr;

use clap::Args;

use super::{Done, Stop};
use crate::engine::cluster::{environment, serve};

/// Run the scheduler of a cluster
///
/// It distributes queries to executors (Apache DataFusion Ballista). Its address for --engine and for executors is the first line
/// on stdout. Anyone who can reach it can run any query that the executors can run: keep it on a private network.
#[derive(Args)]
pub struct Scheduler {
    /// Address and port to listen on; port 0 selects a free one
    #[arg(long, env = "TERCILE_BIND", value_name = "ADDRESS", default_value = "127.0.0.1:50050",
          value_parser = crate::config::address)]
    bind: SocketAddr,
    /// Name or address at which executors reach it [default: that of --bind]
    #[arg(long, env = "TERCILE_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,
}

impl Scheduler {
    pub async fn run(self, mut stop: Stop) -> anyhow::Result<Done> {
        let address = serve::with_port(self.bind)?;
        let host = host(self.advertise, address, "scheduler")?;
        let mut out = std::io::stdout();
        writeln!(out, "df://{host}:{}", address.port())?;
        out.flush()?;
        tracing::info!("executors join with tercile executor --scheduler df://{host}:{}", address.port());
        let environment = environment();
        tokio::select! {
            ended = serve::scheduler(address, host, &environment) => ended.map(|()| Done::Well).map_err(Into::into),
            () = stop.wished() => Ok(Done::Well),
        }
    }
}

/// What others call an address by. One that stands for all addresses of a machine says nothing to them.
pub(super) fn host(advertise: Option<String>, address: SocketAddr, what: &str) -> anyhow::Result<String> {
    match advertise {
        Some(host) => Ok(host),
        None if address.ip().is_unspecified() => {
            anyhow::bail!(
                "{} is no address that others can call; say --advertise HOST, by which they reach this {what}",
                address.ip()
            )
        }
        None if address.is_ipv6() => Ok(format!("[{}]", address.ip())),
        None => Ok(address.ip().to_string()),
    }
}
