//! Reading tokens from a directory that pods and accidents have had their hands in.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use rolecall_sandbox::kubelet::KubeletDir;

use super::*;

const UID: &str = "0b6f0a8e-8f0f-4b27-a4e7-0d3a8a7f3c11";

struct Fixture {
    kubelet: KubeletDir,
    source: TokenSource,
}

impl Fixture {
    fn new() -> Self {
        let kubelet = KubeletDir::new().unwrap();
        let source = TokenSource::new(kubelet.path().to_owned());
        Self { kubelet, source }
    }

    /// The volume's directory, there and empty.
    fn empty_volume(&self) -> PathBuf {
        let path = self.kubelet.volume_path(UID, "v");
        fs::create_dir_all(&path).unwrap();
        path
    }

    async fn read(&self, volumes: &[(&str, &str)]) -> String {
        let volumes: Vec<TokenVolume> = volumes
            .iter()
            .map(|(volume, path)| TokenVolume { volume: (*volume).into(), path: (*path).into() })
            .collect();
        match self.source.read(&UID.parse().unwrap(), &volumes).await {
            Ok(token) => format!("token {}", token.expose()),
            Err(ReadError::Missing) => "missing".into(),
            Err(ReadError::Unusable(why)) => format!("unusable: {why}"),
            Err(ReadError::Io(error)) => format!("io: {:?}", error.kind()),
        }
    }
}

#[tokio::test]
async fn a_projected_token_is_read_through_the_kubelets_links() {
    let fixture = Fixture::new();
    fixture.kubelet.write_token(UID, "v", "token", "one").unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "token one");
    fixture.kubelet.write_token(UID, "v", "token", "two\n").unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "token two");
}

#[tokio::test]
async fn a_token_in_a_folder_of_its_volume_is_read() {
    let fixture = Fixture::new();
    fixture.kubelet.write_token(UID, "v", "sub/token", "one").unwrap();
    assert_eq!(fixture.read(&[("v", "sub/token")]).await, "token one");
}

#[tokio::test]
async fn the_first_volume_that_has_a_token_counts() {
    let fixture = Fixture::new();
    fixture.kubelet.write_token(UID, "b", "token", "of b").unwrap();
    assert_eq!(fixture.read(&[("a", "token"), ("b", "token")]).await, "token of b");
    fixture.kubelet.write_token(UID, "a", "token", "of a").unwrap();
    assert_eq!(fixture.read(&[("a", "token"), ("b", "token")]).await, "token of a");
}

#[tokio::test]
async fn what_is_not_there_is_missing() {
    let fixture = Fixture::new();
    assert_eq!(fixture.read(&[("v", "token")]).await, "missing");
    assert_eq!(fixture.read(&[]).await, "missing");
    let volume = fixture.empty_volume();
    assert_eq!(fixture.read(&[("v", "token")]).await, "missing");
    fs::write(volume.join("token"), "").unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "missing", "an empty file is being written");
}

#[tokio::test]
async fn no_link_leads_out_of_the_volume() {
    let fixture = Fixture::new();
    let secret = fixture.kubelet.path().join("secret");
    fs::write(&secret, "of the node").unwrap();
    fixture.kubelet.write_token("other", "v", "token", "of another pod").unwrap();
    let volume = fixture.empty_volume();
    for target in [
        secret.as_path(),
        Path::new("/proc/self/environ"),
        Path::new("../../../../secret"),
        Path::new("../../../../other/volumes/kubernetes.io~projected/v/token"),
    ] {
        let _ = fs::remove_file(volume.join("token"));
        symlink(target, volume.join("token")).unwrap();
        assert_eq!(
            fixture.read(&[("v", "token")]).await,
            "unusable: a link leads out of its volume",
            "{}",
            target.display()
        );
    }
}

#[tokio::test]
async fn a_volume_that_is_itself_a_link_is_refused() {
    let fixture = Fixture::new();
    fixture.kubelet.write_token("other", "v", "token", "of another pod").unwrap();
    let volume = fixture.empty_volume();
    fs::remove_dir(&volume).unwrap();
    symlink(fixture.kubelet.volume_path("other", "v"), &volume).unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "unusable: a link leads out of its volume");
}

#[tokio::test]
async fn no_path_of_a_spec_leads_out_of_the_volume() {
    let fixture = Fixture::new();
    fixture.kubelet.write_token("other", "v", "token", "of another pod").unwrap();
    fixture.empty_volume();
    let out = "../../../../other/volumes/kubernetes.io~projected/v/token";
    assert_eq!(fixture.read(&[("v", out)]).await, "unusable: a link leads out of its volume");
    assert_eq!(fixture.read(&[("v", "/etc/passwd")]).await, "unusable: a link leads out of its volume");
    for name in ["../../../other/volumes/kubernetes.io~projected/v", "..", "/", "", "a/b"] {
        assert_eq!(fixture.read(&[(name, "token")]).await, "unusable: its volume's name is a path", "{name}");
    }
}

#[tokio::test]
async fn what_is_no_file_of_a_tokens_size_is_refused() {
    let fixture = Fixture::new();
    let volume = fixture.empty_volume();
    let token = volume.join("token");
    fs::write(&token, "t".repeat(MAX_TOKEN_LENGTH)).unwrap();
    assert!(fixture.read(&[("v", "token")]).await.starts_with("token ttt"));
    fs::write(&token, "t".repeat(MAX_TOKEN_LENGTH + 1)).unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "unusable: it is larger than 16 KiB");
    fs::write(&token, [0xff, 0xfe]).unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "unusable: it is not text");
    fs::remove_file(&token).unwrap();
    fs::create_dir(&token).unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "unusable: it is not a regular file");
    fs::remove_dir(&token).unwrap();
    nix::unistd::mkfifo(&token, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "unusable: it is not a regular file");
}

#[tokio::test]
async fn missing_rights_are_told_from_a_missing_file() {
    if nix::unistd::geteuid().is_root() {
        // Root reads what the mode forbids; what is left to see is that the file's mode does not matter to it.
        let fixture = Fixture::new();
        fixture.kubelet.write_token(UID, "v", "token", "one").unwrap();
        let file = fixture.kubelet.token_path(UID, "v", "token");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fixture.read(&[("v", "token")]).await, "token one");
        return;
    }
    let fixture = Fixture::new();
    fixture.kubelet.write_token(UID, "v", "token", "one").unwrap();
    let file = fixture.kubelet.token_path(UID, "v", "token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(fixture.read(&[("v", "token")]).await, "io: PermissionDenied");
}

#[tokio::test]
async fn a_rotation_never_shows_a_missing_token() {
    let fixture = Fixture::new();
    fixture.kubelet.write_token(UID, "v", "token", "0").unwrap();
    let kubelet = fixture.kubelet.clone();
    let writer = tokio::task::spawn_blocking(move || {
        for i in 1..=300 {
            kubelet.write_token(UID, "v", "token", &i.to_string()).unwrap();
        }
    });
    let mut reads = 0;
    while !writer.is_finished() {
        let got = fixture.read(&[("v", "token")]).await;
        assert!(got.starts_with("token "), "{got}");
        reads += 1;
    }
    writer.await.unwrap();
    assert!(0 < reads);
    assert_eq!(fixture.read(&[("v", "token")]).await, "token 300");
}

#[test]
fn a_missing_token_is_looked_for_soon_at_first_and_rarely_later() {
    for (waited, again) in [(0, 5), (40, 5), (400, 50), (8_000, 1_000), (40_000, 5_000), (3_600_000, 5_000)] {
        assert_eq!(look_again_in(Duration::from_millis(waited)), Duration::from_millis(again), "{waited} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_comes_late_is_waited_for() {
    let fixture = Fixture::new();
    let uid: PodUid = UID.parse().unwrap();
    let volumes = [TokenVolume { volume: "v".into(), path: "token".into() }];
    let began = Instant::now();
    let waiting = fixture.source.wait(&uid, &volumes);
    let writing = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        fixture.kubelet.write_token(UID, "v", "token", "late").unwrap();
        std::future::pending::<()>().await;
    };
    let token = tokio::select! {
        token = waiting => token.unwrap(),
        () = writing => unreachable!(),
    };
    assert_eq!(token.expose(), "late");
    assert!(began.elapsed() <= Duration::from_secs(65), "{:?}", began.elapsed());
}
