// Files that are whole or not there, and what is said of those that cannot be read.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <string>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/file_error.h"
#include "runtime/files/files.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

/// What the file holds, by the standard library; "" where there is none.
std::string content_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <typename E>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const E& e) {
    return e.message();
  }
  return "";
}

class Files : public ::testing::Test {
 protected:
  fs::path path(const char* name) const { return directory_.path() / name; }
  std::size_t count() const { return idx(std::distance(fs::directory_iterator(directory_.path()), {})); }
  TemporaryDirectory directory_;
};

TEST_F(Files, HaveTheOldContentUntilTheNewOneIsWhole) {
  write_file_atomically(path("f"), "one");
  {
    AtomicFile file(path("f"));
    file.write("two");
    EXPECT_EQ(content_of(path("f")), "one");
    file.commit();
    EXPECT_EQ(content_of(path("f")), "two");
  }
  {
    AtomicFile file(path("f"));
    file.write(std::string(200000, 'x'));
    EXPECT_TRUE(fs::exists(path("f.tmp")));
  }  // without commit()
  EXPECT_EQ(content_of(path("f")), "two");
  EXPECT_EQ(count(), 1U);
}

TEST_F(Files, PartsOfAnySizeStandInTheirOrder) {
  std::string wanted;
  AtomicFile file(path("f"));
  for (const std::size_t n : {0U, 1U, 65535U, 1U, 65536U, 7U, 200000U, 3U, 65530U, 65530U, 2U}) {
    const std::string part(n, static_cast<char>('a' + wanted.size() % 26));
    file.write(part);
    wanted += part;
  }
  file.commit();
  EXPECT_TRUE(content_of(path("f")) == wanted);
}

TEST_F(Files, SayWhyTheyCannotBeWritten) {
  const std::string absent = message_of<IoError>([&] { write_file_atomically(directory_.path() / "no" / "x", "y"); });
  EXPECT_NE(absent.find("cannot create " + (directory_.path() / "no" / "x.tmp").string()), std::string::npos) << absent;
  fs::create_directory(path("d"));
  fs::create_directory(path("d") / "in");
  const std::string taken = message_of<IoError>([&] { write_file_atomically(path("d"), "y"); });
  EXPECT_NE(taken.find("cannot rename"), std::string::npos) << taken;
  EXPECT_EQ(count(), 1U);  // no d.tmp
  // What could not be created is somebody else's.
  fs::create_symlink("nowhere/at/all", path("f.tmp"));
  EXPECT_NE(message_of<IoError>([&] { AtomicFile file(path("f")); }), "");
  EXPECT_TRUE(fs::is_symlink(path("f.tmp")));
}

TEST_F(Files, WrittenByTheirNameVanishUnlessCommitted) {
  {
    const TemporaryPath temporary(path("f"));
    std::ofstream(temporary.get()) << "half";
  }
  EXPECT_EQ(count(), 0U);
  TemporaryPath temporary(path("f"));
  std::ofstream(temporary.get()) << "whole";
  temporary.commit();
  EXPECT_EQ(content_of(path("f")), "whole");
  EXPECT_EQ(count(), 1U);
}

TEST_F(Files, AreReadWholeOrSayWhyNot) {
  std::string text("a\0\r\n", 4);
  text.append(100000, 'z');
  write_file_atomically(path("f"), text);
  EXPECT_TRUE(read_text(path("f")) == text);
  EXPECT_TRUE(try_read_text(path("f")).text == text);
  EXPECT_EQ(try_read_text(path("f")).error, 0);
  EXPECT_EQ(bytes_of_file(path("f")), 100004);
  EXPECT_NE(message_of<DamagedError>([&] { read_text(path("g")); }).find("is missing"), std::string::npos);
  EXPECT_EQ(try_read_text(path("g")).error, ENOENT);
  EXPECT_EQ(try_read_text(directory_.path()).error, EISDIR);
  EXPECT_NE(message_of<DamagedError>([&] { read_text(directory_.path()); }), "");
  fs::create_symlink(path("away"), path("link"));
  EXPECT_NE(message_of<UnreadableError>([&] { read_text(path("link")); }), "");
}

// A recipe may come from a shell's <(command); a manifest is never waited for.
TEST_F(Files, PipesAreReadOnlyWhereTheyAreMeant) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_NE(message_of<UnreadableError>([&] { read_text(path("pipe")); }), "");
  const pid_t writer = fork();
  if (writer == 0) {
    const int fd = open(path("pipe").c_str(), O_WRONLY);
    const bool written = write(fd, "text", 4) == 4;
    _exit(written ? 0 : 1);
  }
  EXPECT_EQ(try_read_text(path("pipe")).text, "text");
  int status = 0;
  waitpid(writer, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST_F(Files, MovedAsideGetNamesThatAreFree) {
  std::set<fs::path> names;
  for (int i = 0; i < 3; ++i) {
    write_file_atomically(path("f"), std::to_string(i));
    const fs::path aside = move_aside(path("f"));
    EXPECT_TRUE(aside.filename().string().starts_with("f.until-2")) << aside;
    EXPECT_EQ(content_of(aside), std::to_string(i));
    names.insert(aside);
  }
  EXPECT_EQ(names.size(), 3U);
  EXPECT_FALSE(fs::exists(path("f")));
  EXPECT_NE(message_of<IoError>([&] { move_aside(path("f")); }).find("cannot rename"), std::string::npos);
}

}  // namespace
}  // namespace emox::test
