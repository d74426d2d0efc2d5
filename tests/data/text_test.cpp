#include "data/corpus/text.h"

#include "tests/data/data_support.h"

namespace emox::test {
namespace {

using Texts = std::vector<std::string>;

TEST(CleanText, DropsWhatIsNotText) {
  EXPECT_EQ(clean_text("a\r\nb\x01\x7F"), "a\nb");
  EXPECT_EQ(clean_text("\xEF\xBB\xBFx\xC2\xA0y\xC2\xADz"), "x yz");  // byte order mark, no-break space, soft hyphen
  EXPECT_EQ(clean_text("\xC3\xA4 \xE4 \xC0\xAF \xED\xA0\x80 \xF0\x9F\x98\x80 \xE2\x82"),
            "\xC3\xA4    \xF0\x9F\x98\x80");
}

TEST(CleanText, NormalisesBlanksButKeepsIndentation) {
  EXPECT_EQ(clean_text("\n\n  if x:  \n\t\ty \n\n\n\nz\n\n"), "  if x:\n\t\ty\n\nz");
  EXPECT_EQ(clean_text(" \n \t\n"), "");
}

TEST(Reflow, JoinsLinesOfAParagraph) {
  EXPECT_EQ(reflow("  one\n  two\tthree\n\n \n  four\n"), "one two three\n\nfour");
  EXPECT_EQ(reflow(""), "");
}

TEST(SplitText, KeepsAShortTextWhole) {
  EXPECT_EQ(split_text("one\n\ftwo"), (Texts{"one\n\ntwo"}));
  EXPECT_TRUE(split_text("").empty());
}

TEST(SplitText, BeginsANewPieceAtABreakOnceThereIsEnough) {
  const std::string enough(kSplitBytes, 'a');
  const std::string less(kSplitBytes - 1, 'a');
  const std::string tail(kShortDocumentBytes, 'b');
  EXPECT_EQ(split_text(enough + "\n\n\f" + tail), (Texts{enough, tail}));
  EXPECT_EQ(split_text(less + "\n\n\f" + tail), (Texts{less + "\n\n" + tail}));
  EXPECT_EQ(split_text(enough + "\n\n" + tail), (Texts{enough + "\n\n" + tail}));  // a paragraph is no break
}

TEST(SplitText, JoinsAShortRestToThePieceBefore) {
  const std::string enough(kSplitBytes, 'a');
  const std::string rest(kShortDocumentBytes - 1, 'b');
  EXPECT_EQ(split_text(enough + "\f" + rest), (Texts{enough + "\n\n" + rest}));
}

TEST(SplitText, CutsLongParagraphsAtTheBestPlaceAndLosesNothing) {
  std::string sentences;
  while (sentences.size() < 3 * kMaxDocumentBytes) sentences += "Some words stand here. ";
  std::string joined;
  const Texts pieces = split_text(clean_text(sentences));
  ASSERT_GE(pieces.size(), 3u);
  for (const std::string& p : pieces) {
    EXPECT_LE(p.size(), kMaxDocumentBytes);
    EXPECT_TRUE(p.ends_with("here.")) << p.substr(p.size() - 20);
    joined += p + " ";
  }
  EXPECT_EQ(joined, sentences);
}

TEST(SplitText, NeverCutsInsideACharacter) {
  std::string letters;
  for (int i = 0; i < 5000; ++i) letters += "\xD0\x96";
  letters.insert(0, "x");  // the limit now falls between the two bytes of a letter
  std::string joined;
  for (const std::string& p : split_text(letters)) {
    EXPECT_LE(p.size(), kMaxDocumentBytes);
    EXPECT_EQ(clean_text(p), p);  // invalid bytes would be dropped
    joined += p;
  }
  EXPECT_EQ(joined, letters);
}

TEST(JoinShort, JoinsUntilThereIsEnough) {
  const std::string shorter(120, 'a'), full(kShortDocumentBytes, 'b'), huge(kMaxDocumentBytes - 100, 'c');
  std::string text = shorter;
  EXPECT_TRUE(join_short(text, shorter));
  EXPECT_EQ(text, shorter + "\n\n" + shorter);
  EXPECT_FALSE(join_short(text, full)) << "it is long enough";
  text = full;
  EXPECT_FALSE(join_short(text, shorter));
  text = shorter;
  EXPECT_FALSE(join_short(text, huge)) << "together beyond the limit";
  EXPECT_EQ(text, shorter);
}

TEST(Printable, IsOneLineOfValidTextWhateverTheBytes) {
  EXPECT_EQ(printable("a/\xC3\xA4 b"), "a/\xC3\xA4 b");
  EXPECT_EQ(printable("a\nb\\\x7F\xFF\xC3"), "a\\x0Ab\\x5C\\x7F\\xFF\\xC3");
  EXPECT_EQ(printable(std::string_view("\0", 1)), "\\x00");
}

}  // namespace
}  // namespace emox::test
