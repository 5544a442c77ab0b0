//! The store that the balancers share, on a host of its own: a store in memory behind the simulated network.
//!
//! Calls and answers are handed over in this process; what crosses the network is their number, and the word that they
//! are done. So whether a call arrives, when, and whether its answer does, is the network's to say, as it is with etcd.
//! It also gives leases one clock: every host of the simulation has its own, which begins anew when it is restarted.

use evenkeel::records::memory::MemoryStore;
use evenkeel::records::{Found, Store, StoreError, Told};
use evenkeel_core::records::{Key, LeaseId, Outcome, Revision, Scope, Transaction, Versioned};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use turmoil::net::{TcpListener, TcpStream};

const PORT: u16 = 2379;
/// As long as the client of etcd waits, about.
const CALL_MAX: Duration = Duration::from_millis(1500);
/// How often the store says on a watch that it is there; a watch on which three are missing is opened anew.
const BEAT: Duration = Duration::from_millis(300);
/// Before a watch that broke is opened anew.
const PAUSE: Duration = Duration::from_millis(200);
/// What stands on the wire.
const DONE: u8 = 1;
const STILL_HERE: u8 = 2;

type Call = Box<dyn FnOnce(MemoryStore) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

enum Errand {
    Call(Call),
    Watch(Scope, mpsc::Sender<Told>),
}

/// Errands under way, by number.
#[derive(Default)]
struct Desk {
    last: AtomicU64,
    errands: Mutex<HashMap<u64, Errand>>,
}

impl Desk {
    fn put(&self, errand: Errand) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.errands.lock().expect("not poisoned").insert(number, errand);
        number
    }

    fn take(&self, number: u64) -> Option<Errand> {
        self.errands.lock().expect("not poisoned").remove(&number)
    }
}

/// The store, as its host runs it and as tests look at it.
#[derive(Clone, Default)]
pub(crate) struct StoreHost {
    desk: Arc<Desk>,
    store: MemoryStore,
}

impl StoreHost {
    /// What a balancer uses, which reaches the store at this address.
    pub(crate) fn client(&self, address: IpAddr) -> StoreClient {
        StoreClient { desk: self.desk.clone(), address }
    }

    /// What stands in a scope.
    pub(crate) fn list(&self, scope: &Scope) -> Vec<(Key, Versioned)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(Store::list(&self.store, scope)).expect("memory answers").records
    }

    /// Serves for ever.
    pub(crate) async fn run(self) -> turmoil::Result {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let host = self.clone();
            // It ends when the other side is gone, which is nobody's fault.
            tokio::spawn(async move { host.serve(stream).await.ok() });
        }
    }

    async fn serve(self, mut stream: TcpStream) -> io::Result<()> {
        let number = stream.read_u64().await?;
        match self.desk.take(number) {
            Some(Errand::Call(call)) => {
                call(self.store).await;
                stream.write_u8(DONE).await
            }
            Some(Errand::Watch(scope, told)) => {
                let mut news = self.store.watch(scope);
                let mut beat = tokio::time::interval(BEAT);
                loop {
                    tokio::select! {
                        Some(news) = news.recv() => {
                            told.send(news).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
                            stream.write_u8(DONE).await?;
                        }
                        _ = beat.tick() => stream.write_u8(STILL_HERE).await?,
                    }
                }
            }
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A balancer's side.
#[derive(Clone)]
pub(crate) struct StoreClient {
    desk: Arc<Desk>,
    address: IpAddr,
}

impl StoreClient {
    async fn send(&self, errand: Errand) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect((self.address, PORT)).await?;
        stream.write_u64(self.desk.put(errand)).await?;
        Ok(stream)
    }

    async fn ask<T, F>(
        &self,
        operation: &'static str,
        call: impl FnOnce(MemoryStore) -> F + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let (reply, answer) = oneshot::channel();
        let call: Call = Box::new(move |store| {
            Box::pin(async move {
                // Who asked may have gone.
                let _ = reply.send(call(store).await);
            })
        });
        let away = |reason: String| StoreError::Away { place: self.place(), reason };
        let sent = timeout(CALL_MAX, self.send(Errand::Call(call))).await;
        let mut stream = sent.map_err(|e| away(e.to_string()))?.map_err(|e| away(e.to_string()))?;
        match timeout(CALL_MAX, stream.read_u8()).await {
            Ok(Ok(DONE)) => answer.await.expect("it was answered"),
            _ => Err(StoreError::Unknown {
                place: self.place(),
                operation,
                waited_ms: u64::try_from(CALL_MAX.as_millis()).expect("short"),
            }),
        }
    }

    /// One watch, until it breaks or nobody reads it any more.
    async fn follow(&self, scope: Scope, news: &mpsc::Sender<Told>) -> io::Result<()> {
        let (told, mut telling) = mpsc::channel(1);
        let mut stream = timeout(CALL_MAX, self.send(Errand::Watch(scope, told))).await??;
        loop {
            if timeout(3 * BEAT, stream.read_u8()).await?? == DONE {
                let told = telling.recv().await.ok_or(io::ErrorKind::BrokenPipe)?;
                news.send(told).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
        }
    }
}

#[tonic::async_trait]
impl Store for StoreClient {
    async fn read(&self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError> {
        let keys = keys.to_vec();
        self.ask("read", |store| async move { store.read(&keys).await }).await
    }

    async fn keys(&self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError> {
        let scope = scope.clone();
        self.ask("keys", |store| async move { store.keys(&scope).await }).await
    }

    async fn list(&self, scope: &Scope) -> Result<Found<Vec<(Key, Versioned)>>, StoreError> {
        let scope = scope.clone();
        self.ask("list", |store| async move { Store::list(&store, &scope).await }).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let transaction = transaction.clone();
        self.ask("transact", |store| async move { store.transact(&transaction).await }).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask("grant", move |store| async move { store.grant(ttl).await }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask("keep_alive", move |store| async move { store.keep_alive(lease).await }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask("revoke", move |store| async move { store.revoke(lease).await }).await
    }

    fn watch(&self, scope: Scope) -> mpsc::Receiver<Told> {
        let (news, told) = mpsc::channel(1);
        let client = self.clone();
        tokio::spawn(async move {
            while !news.is_closed() {
                // Whatever ended it, what was missed is told as a list.
                let _ = client.follow(scope.clone(), &news).await;
                tokio::time::sleep(PAUSE).await;
            }
        });
        told
    }

    fn place(&self) -> String {
        format!("{}:{PORT}", self.address)
    }
}
