#include "plugins/stamp.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "graft/error.h"
#include "graft/plugins.h"

namespace graft {
namespace {

constexpr std::uint64_t kMostSegments = 1024;
constexpr std::size_t kMostNoteBytes = 64 * 1024;

#if defined(__x86_64__)
constexpr Elf64_Half kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr Elf64_Half kMachine = EM_AARCH64;
#else
#error "add this processor's ELF machine number"
#endif

Refusal damaged(const std::string& how) { return {"damaged: " + how + "; build or copy it again"}; }

std::string machine_name(Elf64_Half machine) {
  switch (machine) {
    case EM_X86_64:
      return "x86-64";
    case EM_AARCH64:
      return "aarch64";
    case EM_386:
      return "x86";
    case EM_RISCV:
      return "RISC-V";
    default:
      return "ELF machine " + std::to_string(machine);
  }
}

/// Whether [offset, offset + count * size) lies inside the file.
bool inside(const InspectedFile& file, std::uint64_t offset, std::uint64_t count,
            std::uint64_t size) {
  return offset <= file.size() && (size == 0 || count <= (file.size() - offset) / size);
}

/// The ELF header, or why the file is no complete shared library for this machine.
std::variant<Elf64_Ehdr, Refusal> read_header(const InspectedFile& file) {
  Elf64_Ehdr header{};
  std::array<char, 2> magic{};
  if (file.read(0, magic.data(), magic.size()) && magic[0] == 'M' && magic[1] == 'Z')
    return Refusal{"a Windows library, expected an ELF one; build the plugin on this system"};
  std::array<unsigned char, EI_NIDENT> identity{};
  if (!file.read(0, identity.data(), identity.size()) ||
      std::memcmp(identity.data(), ELFMAG, SELFMAG) != 0)
    return Refusal{"not an ELF file, expected a shared library; build it with graft_add_plugin"};
  if (identity[EI_CLASS] != ELFCLASS64 || identity[EI_DATA] != ELFDATA2LSB)
    return Refusal{
        "not a 64-bit little-endian library, which this host needs; build the plugin on this kind "
        "of "
        "machine"};
  if (!file.read(0, &header, sizeof(header))) return damaged("its ELF header is cut off");
  if (header.e_machine != kMachine)
    return Refusal{"built for " + machine_name(header.e_machine) + ", this host runs on " +
                   machine_name(kMachine) + "; build the plugin on this kind of machine"};
  if (header.e_type != ET_DYN)
    return Refusal{"ELF type " + std::to_string(header.e_type) +
                   ", expected a shared library (type 3); build it with graft_add_plugin"};
  if (header.e_phentsize != sizeof(Elf64_Phdr))
    return damaged("its program headers are " + std::to_string(header.e_phentsize) +
                   " bytes each, expected " + std::to_string(sizeof(Elf64_Phdr)));
  if (header.e_phnum > kMostSegments)
    return damaged("it has " + std::to_string(header.e_phnum) + " program headers, at most " +
                   std::to_string(kMostSegments) + " are read");
  if (!inside(file, header.e_phoff, header.e_phnum, sizeof(Elf64_Phdr)))
    return damaged("its program headers are cut off");
  if (header.e_shnum && !inside(file, header.e_shoff, header.e_shnum, header.e_shentsize))
    return damaged("its section headers are cut off");
  return header;
}

/// A plain word: printable as it is, in messages and in file names.
bool plain(const char* text, std::size_t size, std::string_view extra) {
  const void* end = std::memchr(text, '\0', size);
  if (!end || end == text) return false;
  for (const char* c = text; c != end; ++c) {
    const bool letter = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z');
    if (!letter && !(*c >= '0' && *c <= '9') && extra.find(*c) == extra.npos) return false;
  }
  return true;
}

/// `available` bytes of the stamp are in the file.
std::variant<graft_stamp, Refusal> checked(const graft_stamp_note& note, std::uint64_t available) {
  const auto size = std::min<std::uint64_t>({note.payload_size, note.stamp.size, available});
  if (size < sizeof(graft_stamp))
    return Refusal{"a stamp of " + std::to_string(size) + " bytes, expected at least " +
                   std::to_string(sizeof(graft_stamp)) + "; rebuild it with this graft"};
  if (!plain(note.stamp.torch, sizeof(note.stamp.torch), ".+-_"))
    return damaged("the torch version in its stamp is not a version");
  if (!plain(note.stamp.id, sizeof(note.stamp.id), ".-_"))
    return damaged("the id in its stamp is not made of letters, digits and .-_");
  if (!plain(note.stamp.version, sizeof(note.stamp.version), ".+-_"))
    return damaged("the version in its stamp is not a version");
  return note.stamp;
}

}  // namespace

std::variant<InspectedFile, Refusal> InspectedFile::open(const std::filesystem::path& path) {
  InspectedFile file;
  file.descriptor_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  struct stat status {};
  if (file.descriptor_ < 0 || ::fstat(file.descriptor_, &status) != 0)
    return Refusal{"cannot be opened: " + std::system_category().message(errno)};
  if (!S_ISREG(status.st_mode))
    return Refusal{"not a regular file, expected a shared library; give the .so file of a plugin"};
  file.size_ = static_cast<std::uint64_t>(status.st_size);
  file.device_ = status.st_dev;
  file.inode_ = status.st_ino;
  file.owner_ = status.st_uid;
  file.mode_ = status.st_mode;
  return file;
}

InspectedFile::InspectedFile(InspectedFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      device_(other.device_),
      inode_(other.inode_),
      owner_(other.owner_),
      mode_(other.mode_) {}

InspectedFile::~InspectedFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool InspectedFile::read(std::uint64_t offset, void* out, std::size_t bytes) const {
  if (offset > size_ || size_ - offset < bytes) return false;
  auto* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor_, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;  // the file shrank, or the disk failed
    to += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::size_t>(got);
  }
  return true;
}

std::variant<graft_stamp, Refusal> read_stamp(const InspectedFile& file) {
  auto header = read_header(file);
  if (auto* refusal = std::get_if<Refusal>(&header)) return std::move(*refusal);
  const auto& elf = std::get<Elf64_Ehdr>(header);

  std::optional<graft_stamp_note> found;
  std::uint64_t available = 0;
  std::vector<char> notes;
  std::size_t note_bytes = 0;
  for (std::uint64_t i = 0; i < elf.e_phnum; ++i) {
    Elf64_Phdr segment{};
    if (!file.read(elf.e_phoff + i * sizeof(segment), &segment, sizeof(segment)))
      return damaged("its program headers are cut off");
    // The loader would map what is missing and die of SIGBUS where it is touched. PT_GNU_RELRO says
    // what becomes read-only in memory, up to a page: in a stripped file that may end before.
    if (segment.p_type != PT_GNU_RELRO &&
        !inside(file, segment.p_offset, segment.p_filesz, 1))
      return damaged("segment " + std::to_string(i) + " needs " + std::to_string(segment.p_filesz) +
                     " bytes at offset " + std::to_string(segment.p_offset) + ", the file has " +
                     std::to_string(file.size()));
    if (segment.p_type != PT_NOTE || found) continue;
    note_bytes += std::min<std::uint64_t>(segment.p_filesz, kMostNoteBytes + 1);
    if (note_bytes > kMostNoteBytes)
      return damaged("it has more than " + std::to_string(kMostNoteBytes) + " bytes of notes");
    notes.resize(segment.p_filesz);
    if (!file.read(segment.p_offset, notes.data(), notes.size()))
      return damaged("its notes are cut off");

    const auto padded = [](std::uint64_t n) { return (n + 3) & ~std::uint64_t{3}; };
    for (std::uint64_t at = 0; at + sizeof(Elf64_Nhdr) <= notes.size();) {
      Elf64_Nhdr note{};
      std::memcpy(&note, notes.data() + at, sizeof(note));
      if (note.n_type == GRAFT_STAMP_NOTE_TYPE && note.n_namesz == sizeof("graft") &&
          notes.size() - at >= offsetof(graft_stamp_note, stamp.abi_major) &&
          std::memcmp(notes.data() + at + sizeof(note), "graft\0\0", 8) == 0) {
        found.emplace();
        std::memcpy(&*found, notes.data() + at, std::min(sizeof(*found), notes.size() - at));
        available = notes.size() - at - offsetof(graft_stamp_note, stamp);
        break;
      }
      at += sizeof(note) + padded(note.n_namesz) + padded(note.n_descsz);  // 32 bits each
    }
  }
  if (found) return checked(*found, available);
  return Refusal{
      "no graft stamp, so not a graft plugin; build it with graft_add_plugin, or move it "
      "out of the plugin folder"};
}

graft_stamp read_stamp(const std::filesystem::path& path) {
  auto file = InspectedFile::open(path);
  if (auto* refusal = std::get_if<Refusal>(&file))
    throw Error(ErrorKind::resource, refusal->reason).at(quote(path.native()));
  auto stamp = read_stamp(std::get<InspectedFile>(file));
  if (auto* refusal = std::get_if<Refusal>(&stamp))
    throw Error(ErrorKind::plugin, refusal->reason).at(quote(path.native()));
  return std::get<graft_stamp>(stamp);
}

}  // namespace graft
