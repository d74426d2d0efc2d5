// The cores that the system lets this process use: a launcher or a job scheduler may bind it to a few of the machine's.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace emox::cpu {

/// A bit a core; those beyond its size are not known.
using CoreMask = std::array<std::uint8_t, 512>;
CoreMask allowed_cores();
int count_of(const CoreMask& mask);

/// "0-3,8" -> cores 0, 1, 2, 3 and 8; none where the text is no such list.
CoreMask cores_of_list(const std::string& list);
/// The same the other way round.
std::string list_of(const CoreMask& mask);
/// The cores beside a PCI device ("0000:1B:00.0"), as the system says; none where it says nothing.
CoreMask cores_near(std::string pci_address, const std::string& devices = "/sys/bus/pci/devices");
/// The calling thread, and the threads that it starts from now on, stay on those of its cores that are in `near`, where
/// there are some. Returns how many; 0: everything is as it was.
int stay_on(const CoreMask& near);

}  // namespace emox::cpu
