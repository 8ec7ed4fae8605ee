//! The content store: blobs by digest.

use lamina_fusefs::blob::Digest;
use lamina_proto::FieldMask;
use lamina_proto::containerd::services::content::v1 as api;
use tokio::sync::mpsc::{Receiver, channel};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use api::WriteAction;
use api::content_client::ContentClient;

use super::{Containerd, Labels, Result, failed};

/// What containerd knows of a blob in its content store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Content {
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) labels: Labels,
}

impl Containerd {
    /// The blob with this digest, which belongs to the lease from now on; `None` if there is none.
    pub(crate) async fn content(&self, digest: Digest) -> Result<Option<Content>> {
        // Held before it is looked at: what is there then stays there.
        self.hold("content".to_owned(), digest.to_string()).await?;
        let request = api::InfoRequest {
            digest: digest.to_string(),
        };
        let mut client = ContentClient::new(self.channel.clone());
        match client.info(self.request(request)).await {
            Ok(found) => {
                let info = found.into_inner().info.unwrap_or_default();
                Ok(Some(Content {
                    size: u64::try_from(info.size).unwrap_or_default(),
                    labels: info.labels,
                }))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(&format!("looking for {digest}"), &status)),
        }
    }

    /// All bytes of a blob.
    pub(crate) async fn read(&self, digest: Digest) -> Result<Vec<u8>> {
        let failed = |status: Status| failed(&format!("reading {digest}"), &status);
        let request = api::ReadContentRequest {
            digest: digest.to_string(),
            ..Default::default()
        };
        let mut client = ContentClient::new(self.channel.clone());
        let answer = client.read(self.request(request)).await;
        let mut stream = answer.map_err(failed)?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.map_err(failed)? {
            bytes.extend(piece.data);
        }
        Ok(bytes)
    }

    /// Writes a blob of `size` bytes, which containerd holds against its digest. One that is there is no
    /// error. `begin` is called if its bytes are needed, and `written` is told how many are there.
    pub(crate) async fn write(
        &self,
        digest: Digest,
        size: u64,
        begin: impl FnOnce() -> Receiver<Vec<u8>>,
        written: impl Fn(u64),
    ) -> Result<()> {
        match self.try_write(digest, size, begin, written).await {
            Err(status) if status.code() != Code::AlreadyExists => {
                Err(failed(&format!("writing {digest}"), &status))
            }
            _ => Ok(()),
        }
    }

    async fn try_write(
        &self,
        digest: Digest,
        size: u64,
        begin: impl FnOnce() -> Receiver<Vec<u8>>,
        written: impl Fn(u64),
    ) -> Result<(), Status> {
        let total = i64::try_from(size).unwrap_or(i64::MAX);
        // A name of our own: somebody else who writes the same blob has it locked under theirs.
        let lease = self.lease.as_ref().map_or("none", |(id, _)| id);
        let request = api::WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: format!("lamina-{lease}-{digest}"),
            total,
            expected: digest.to_string(),
            ..Default::default()
        };
        let (sender, receiver) = channel(1);
        let gone = |_| Status::unavailable("the connection to containerd broke");
        sender.send(request).await.map_err(gone)?;
        let mut client = ContentClient::new(self.channel.clone());
        let answer = client.write(self.request(ReceiverStream::new(receiver)));
        let mut answers = answer.await?.into_inner();
        let ended = || Status::unavailable("it ended the write");
        let mut offset = answers.message().await?.ok_or_else(ended)?.offset;
        // If another namespace has the blob, all of it is here.
        if offset < total {
            let mut pieces = begin();
            while let Some(data) = pieces.recv().await {
                let request = api::WriteContentRequest {
                    action: WriteAction::Write.into(),
                    offset,
                    data,
                    ..Default::default()
                };
                sender.send(request).await.map_err(gone)?;
                offset = answers.message().await?.ok_or_else(ended)?.offset;
                written(u64::try_from(offset).unwrap_or_default());
            }
        }
        if offset != total {
            let came = format!("{offset} bytes have come instead of {total}");
            return Err(Status::data_loss(came));
        }
        let request = api::WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset,
            total,
            expected: digest.to_string(),
            ..Default::default()
        };
        sender.send(request).await.map_err(gone)?;
        answers.message().await?.ok_or_else(ended)?;
        Ok(())
    }

    /// Sets labels of a blob; its others stay.
    pub(crate) async fn label(&self, digest: Digest, labels: Labels) -> Result<()> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let request = api::UpdateRequest {
            info: Some(api::Info {
                digest: digest.to_string(),
                labels,
                ..Default::default()
            }),
            update_mask: Some(FieldMask { paths }),
        };
        let mut client = ContentClient::new(self.channel.clone());
        let updated = client.update(self.request(request)).await;
        updated.map_err(|status| failed(&format!("labelling {digest}"), &status))?;
        Ok(())
    }
}
