"""An installed graft that was moved: check_installed.py STEP ROOT BUILD FOLDER CMAKE [TORCH].

Works in FOLDER. The step "install" comes first; it leaves the tree in FOLDER/moved/prefix."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

step, (root, build, folder) = sys.argv[1], map(pathlib.Path, sys.argv[2:5])
cmake, torch = sys.argv[5], sys.argv[6]
first, prefix = folder / "first", folder / "moved" / "prefix"
golden = root / "tests/golden/vectors"
environment = {key: value for key, value in os.environ.items()
               if not key.startswith("GRAFT_") and key != "LD_LIBRARY_PATH"}


def run(*command, **options):
    print("$", *command, flush=True)
    done = subprocess.run([str(word) for word in command], text=True, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    print(done.stdout, flush=True)
    assert done.returncode == 0, f"exit code {done.returncode}"
    return done.stdout


def configure_and_build(source, name):
    """A clean build folder below FOLDER, given nothing but the prefix."""
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    run(cmake, "-G", "Ninja", "-S", source, "-B", target, f"-DCMAKE_PREFIX_PATH={prefix}",
        "-DCMAKE_BUILD_TYPE=Release")
    run(cmake, "--build", target)
    return target


def graft(*arguments):
    return run(prefix / "bin/graft", *arguments)


def install():
    for path in (first, prefix.parent):
        shutil.rmtree(path, ignore_errors=True)
    run(cmake, "--install", build, "--prefix", first, "--strip")
    prefix.parent.mkdir(parents=True)
    first.rename(prefix)
    found = graft("plugins")
    for name in ("awq", "bnb", "gptq"):
        assert f"loaded   org.graft.{name}" in found, found
        assert f"{prefix}/lib/graft/plugins/libgraft_{name}.so" in found, found
    assert len(found.splitlines()) == 3, found
    assert "lib/graft/registry/defaults.yaml" in graft("registry", "explain",
                                                       golden / "tiny_llama_dense_fp16", "lm_head",
                                                       "--method", "gptq")
    # Nothing knows where it was built or first installed.
    for file in prefix.rglob("*"):
        if file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            assert str(first).encode() not in content, f"{file} names {first}"
            if file.suffix != ".md":
                assert str(build).encode() not in content, f"{file} names {build}"
    library = prefix / "lib/libgraft.so"
    assert library.is_symlink()
    assert re.search(r"SONAME.*libgraft\.so\.0\.1\b", run("readelf", "-d", library))
    for file in (prefix / "bin/graft", *(prefix / "lib/graft/plugins").glob("*.so")):
        runpath = re.search(r"RUNPATH.*\[(.*)\]", run("readelf", "-d", file)).group(1).split(":")
        assert runpath[0].startswith("$ORIGIN/"), runpath
        assert runpath[1:] == [f"{torch}/lib"], runpath


def consumer():
    target = configure_and_build(root / "tests/install/consumer", "consumer")
    out = run(target / "consumer", golden / "tiny_llama_gptq4_v1")
    assert f"org.graft.gptq {prefix}/lib/graft/plugins/libgraft_gptq.so" in out
    assert "14 quantized modules" in out
    # A version that is not there is refused by find_package.
    older = folder / "older"
    shutil.rmtree(older, ignore_errors=True)
    shutil.copytree(root / "tests/install/consumer", older)
    lists = older / "CMakeLists.txt"
    lists.write_text(lists.read_text().replace("graft 0.1", "graft 0.9"))
    refused = subprocess.run([cmake, "-S", older, "-B", older / "build",
                              f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True, text=True)
    assert refused.returncode != 0 and 'requested version "0.9"' in refused.stderr, refused.stderr
    # With pkg-config alone.
    environment["PKG_CONFIG_PATH"] = str(prefix / "lib/pkgconfig")
    flags = run("pkg-config", "--cflags", "--libs", "graft").split()
    assert f"-I{prefix}/include" in [os.path.normpath(flag) for flag in flags], flags
    program = folder / "by_pkg_config"
    run("c++", "-std=c++20", root / "tests/install/consumer/main.cpp", "-o", program, *flags,
        f"-Wl,-rpath,{prefix}/lib:{torch}/lib")
    assert "14 quantized modules" in run(program, golden / "tiny_llama_gptq4_v1")


def template():
    """The very line of the document that copies and renames the template."""
    text = (root / "docs/writing-a-plugin.md").read_text()
    line = re.search(r"^cp -r plugins/template ternary && .*$", text, re.MULTILINE).group(0)
    work = folder / "author"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(prefix / "share/graft/template", work / "plugins/template")
    run("sh", "-c", line, cwd=work)
    assert not re.search("rtn8|org.example", "".join(
        file.read_text() for file in (work / "ternary").rglob("*") if file.is_file()), re.IGNORECASE)
    target = configure_and_build(work / "ternary", "ternary_build")
    plugin = target / "lib/graft/plugins/libgraft_ternary.so"
    graft("plugins", "test", plugin)
    run(cmake, "--install", target, "--prefix", prefix)
    assert "loaded   org.me.ternary" in graft("plugins")
    out = folder / "ternary_model"
    graft("quantize", golden / "tiny_llama_dense_fp16", out, "--method", "ternary", "--overwrite")
    graft("verify", out, "--strict")
    for file in (prefix / "lib/graft/plugins").glob("libgraft_ternary.*"):
        file.unlink()


def packages():
    """The archive and the Debian package hold what an installation does, and run from anywhere."""
    made = folder / "packages"
    shutil.rmtree(made, ignore_errors=True)
    run(pathlib.Path(cmake).with_name("cpack"), "--config", build / "CPackConfig.cmake", "-B", made)
    archive, = made.glob("*.tar.gz")
    run("tar", "-xzf", archive, "-C", made)
    debian, = made.glob("*.deb")
    assert "libyaml-cpp" in run("dpkg-deb", "-f", debian, "Depends")
    run("dpkg-deb", "-x", debian, made / "debian")
    for tree in (made / archive.name.removesuffix(".tar.gz"), made / "debian/usr"):
        assert (tree / "share/doc/graft/LICENSE").is_file()
        assert run(tree / "bin/graft", "plugins").count("loaded   org.graft.") == 3


def examples():
    target = configure_and_build(prefix / "share/graft/examples", "examples_build")
    rtn8 = configure_and_build(prefix / "share/graft/template", "rtn8_build")
    special = target / "special"
    graft("plugins", "test", special / "libgraft_special.so")
    listed = (root / "tests/examples/CMakeLists.txt").read_text()
    names = " ".join(re.findall(r"(?:set\(|APPEND )examples (.*?)\)", listed, re.DOTALL)).split()
    assert len(names) > 10
    for name in names:
        run(sys.executable, root / "tests/examples/check_example.py", name, target,
            root / "tests/golden", f"libgraft={prefix}/lib/libgraft.so",
            f"rtn8={rtn8}/lib/graft/plugins/libgraft_rtn8.so", f"special={special}")


folder.mkdir(parents=True, exist_ok=True)
{"install": install, "consumer": consumer, "template": template, "packages": packages,
 "examples": examples}[step]()
