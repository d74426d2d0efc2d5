// A libnccl.so.2 from before communicators could be split.
extern "C" int ncclGetVersion(int* version) {
  *version = 21403;
  return 0;
}
