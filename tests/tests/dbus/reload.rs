//! Reading the configuration again, by `Reload` and by SIGHUP: what is good is in force at once, what is bad changes nothing and says
//! file, line and key.

use mdevd_dbus::wire::text;
use mdevd_dbus::{ErrorName, path};
use mdevd_tests::fakesys::FakeHost;
use mdevd_tests::harness::eventually;
use rustix::process::Signal;

use super::common::{CARD, GPU, Heard, Lab, Listener, assert_refused, mdev_uuid, none, one_card, options};

fn configure(host: &FakeHost, file: &str, text: &str) {
    let path = host.etc().join("mdevd").join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// The message of the problem about the configuration.
async fn problem(lab: &Lab) -> Option<String> {
    let problems = lab.manager.problems().await.unwrap();
    problems.iter().find(|p| text(p, "subject") == "configuration").map(|p| text(p, "message").to_string())
}

async fn create_and_remove(lab: &Lab) -> zbus::Result<()> {
    let (mdev, _) = lab.manager.create_mdev(GPU, &none()).await?;
    assert!(lab.mdev(mdev_uuid(mdev.as_str())).await.remove(&none()).await?);
    Ok(())
}

#[tokio::test]
async fn reload_puts_a_good_configuration_in_force_and_a_bad_one_not() {
    let lab = Lab::start(one_card()).await;
    let mut listener = Listener::open(&lab.bus).await;
    let excluded = || async {
        assert_refused(lab.manager.create_mdev(GPU, &none()).await, ErrorName::NoCandidate, &["excluded"]);
    };
    create_and_remove(&lab).await.unwrap();
    configure(&lab.host, "mdevd.toml", &format!("[mdev]\nexclude-parents = ['{CARD}']\n"));
    create_and_remove(&lab).await.expect("it is read when it is asked for, not before");
    lab.manager.reload(&none()).await.unwrap();
    excluded().await;

    let mut last = String::new();
    for (file, toml, words) in [
        (
            "mdevd.toml",
            "# a comment\n[mdev]\nexclude-parent = []\n",
            vec!["mdevd.toml:3:", "'exclude-parent'", "did you mean 'exclude-parents'?"],
        ),
        ("mdevd.toml", "colour = 1\n", vec!["mdevd.toml:1:", "'colour'", "log-level"]),
        ("mdevd.toml", "[mdev]\n\n\nplacement = 'tight'\n", vec!["mdevd.toml:4:", "tight"]),
        ("mdevd.toml", "[mdev\n", vec!["mdevd.toml:1:"]),
        ("mdevd.toml", "[mdev]\nexclude-parents = ['a/b']\n", vec!["mdevd.toml:2:", "a/b"]),
        ("mdevd.toml", "[mdev]\nexclude-parents = 7\n", vec!["mdevd.toml:2:"]),
        (
            "conf.d/50-site.toml",
            "log-levle = 'info'\n",
            vec!["conf.d/50-site.toml:1:", "'log-levle'", "did you mean 'log-level'?"],
        ),
    ] {
        configure(&lab.host, "mdevd.toml", "");
        configure(&lab.host, file, toml);
        assert_refused(lab.manager.reload(&none()).await, ErrorName::InvalidArgument, &words);
        // The old one stays in force, and it is listed until it is mended.
        excluded().await;
        last = problem(&lab).await.unwrap();
        assert!(words.iter().all(|word| last.contains(word)), "{last}");
        assert!(last.contains("stays as it was"), "{last}");
    }
    assert!(last.contains("50-site"));
    let heard = listener.ears.until(
        |heard| matches!(heard, Heard::Changed(path, _, p) if path == path::ROOT && p["Problems"].contains("50-site")),
    );
    heard.await;

    configure(&lab.host, "conf.d/50-site.toml", "log-level = 'debug'\n");
    lab.manager.reload(&none()).await.unwrap();
    assert_eq!(problem(&lab).await, None);
    create_and_remove(&lab).await.unwrap();
    assert!(lab.daemon.log().contains("DEBUG"), "the log's level is part of it");
    // Notes and other files beside it are not read.
    configure(&lab.host, "conf.d/README", "this is no TOML");
    lab.manager.reload(&none()).await.unwrap();
    assert!(!lab.daemon.log().contains("panicked"));
}

#[tokio::test]
async fn sighup_does_the_same() {
    let lab = Lab::start(one_card()).await;
    configure(&lab.host, "mdevd.toml", "[mdev]\nplacment = 'spread'\n");
    lab.daemon.signal(Signal::HUP);
    eventually("the problem", || async { problem(&lab).await.is_some() }).await;
    let message = problem(&lab).await.unwrap();
    for word in ["mdevd.toml:2:", "'placment'", "did you mean 'placement'?", "stays as it was"] {
        assert!(message.contains(word), "{message}");
    }
    create_and_remove(&lab).await.unwrap();
    configure(&lab.host, "mdevd.toml", &format!("[mdev]\nexclude-parents = ['{CARD}']\n"));
    lab.daemon.signal(Signal::HUP);
    eventually("the end of the problem", || async { problem(&lab).await.is_none() }).await;
    let refused = lab.manager.create_mdev(GPU, &options([("label", "x")])).await;
    assert_refused(refused, ErrorName::NoCandidate, &[CARD, "excluded by configuration"]);
}
