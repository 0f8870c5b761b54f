// What the model can do, row by row, and which tests show it: a row without an existing test fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Row {
  int number;
  std::string feature;
  std::string tests;  // names, separated by spaces; "Suite.*" is any test of the suite
};

/// Parity compares with an independent implementation: outputs, losses and every gradient of 66 configurations.
const std::vector<Row> rows = {
    {1, "token embedding N(0, 1), output layer of its own, with bias",
     "Initialisation.HasTheMomentsOfThePublishedPackage Parity.AgreesOnEveryFixture"},
    {2, "axial positions, summed", "AxialPositions.AreSumsOfTheirTables ModuleGradients.EmbeddingAndPositions"},
    {3, "axial positions, concatenated", "AxialPositions.OfTwoWidthsStandOneBehindTheOther"},
    {4, "lengths against max_seq_len and bucket, rounding up",
     "ModelConfig.DerivedNumbers LanguageModel.NamesWhatDoesNotFit Published.TablesAreRoundedDownThereAndUpHere"},
    {5, "embedding dropout", "Dropouts.ActInTrainingOnlyAndFollowTheirStream"},
    {6, "embeddings of another width", "Parity.AgreesOnEveryFixture ModuleGradients.ThreeLayerModelWithEverythingOn"},
    {7, "return_embeddings", "Parity.AgreesOnEveryFixture EncoderDecoder.ConfigsThatDoNotFitAreRefused"},
    {8, "a norm before every sublayer, its own even when tied",
     "WeightTie.SharesModulesButNotNorms ModuleGradients.LayerNorm"},
    {9, "ReZero", "ReZero.IsTheIdentityAtTheStart Parity.AgreesOnEveryFixture"},
    {10, "head width independent of dim / heads", "Attention.HeadsNeedNotDivideTheWidth"},
    {11, "buckets, and the error that names both numbers", "LanguageModel.NamesWhatDoesNotFit"},
    {12, "simple sort net", "Parity.AgreesOnEveryFixture ModuleGradients.SelfAttentionInBothDirections"},
    {13, "its fixed length", "SimpleSortNet.LooksBothWaysOverOneLengthOnly"},
    {14, "attention sort net", "Parity.AgreesOnEveryFixture BucketSummary.EqualsTheComposedForm"},
    {15, "differentiable top-k",
     "TopK.WeighsEachPickAmongWhatIsLeft TopK.OfTwoEqualLogitsIsAHalfAndThenOne "
     "AllOps/GradientOf.AgreesWithCentralDifferences"},
    {16, "Gumbel-Sinkhorn",
     "Sinkhorn.NormalisesColumnsToRoundingAndRowsOnlyRoughly Sinkhorn.NeverMovesTheRowSumsAwayFromOne "
     "Sinkhorn.EqualsItsCompositionFromSmallOps"},
    {17, "noise in training only, from its stream",
     "GumbelNoise.ComesWithTrainingOnlyAndFollowsItsStream InDtype/Properties.P5TwoEvaluationsAgree"},
    {18, "temperature in every path",
     "Temperature.IsHonouredInEveryTopK TopK.BecomesOneHotAsTemperatureFalls "
     "Sinkhorn.BecomesThePermutationAsTheTemperatureFalls"},
    {19, "values come from values, weights act on both", "Attention.ValuesComeFromValues"},
    {20, "several picks, in order, clamped", "GatherBuckets.CopiesWeightedBucketsInOrder Parity.AgreesOnEveryFixture"},
    {21, "SortCut, clamped", "Parity.AgreesOnEveryFixture BucketedAttention.EqualsTheComposedForm"},
    {22, "SortCut with key buckets of another size",
     "Parity.AgreesOnEveryFixture AllOps/GradientOf.AgreesWithCentralDifferences"},
    {23, "the own bucket, always in self-attention, never in cross-attention",
     "BucketedAttention.EqualsTheComposedForm Prefix.P2HasTheLogitsOfTheWhole"},
    {24, "combinations that make no sense are refused", "ModelConfig.RefusedCombinationsSayWhy"},
    {25, "running means over long sequences", "CumulativeMean.StaysExactOverALongSequence"},
    {26, "causal attention sort net",
     "CausalChoices.AreNullsAndEarlierBucketsWithARealToken BucketSummary.EqualsTheComposedForm "
     "RouteBuckets.PicksWhatTheMatrixOfScoresPicks RouteBuckets.HasTheGradientsOfTheMatrixOfScores"},
    {27, "causal simple sort net, short sequences", "Parity.AgreesOnEveryFixture Prefix.P2HasTheLogitsOfTheWhole"},
    {28, "null keys and values of each head",
     "ModuleGradients.CausalSelfAttentionWithBothSortNets BucketedAttention.NamesTheExtentsThatDoNotFit"},
    {29, "rotation of half the heads, and back", "Rotate.TurnsToTheLeft BucketSummary.EqualsTheComposedForm"},
    {30, "the last bucket of rotated heads", "PlantedLeaks.AreFound LeakCheck.FindsEveryPlantedLeakInItsHeads"},
    {31, "no future", "InDtype/Properties.P1NoOutputDependsOnTheFuture"},
    {32, "prefixes", "Prefix.P2HasTheLogitsOfTheWhole"},
    {33, "masks beside any number of nulls", "InDtype/Properties.P3PaddedContentNeverChangesARealOutput"},
    {34, "padding never matters",
     "InDtype/Properties.P3PaddedContentNeverChangesARealOutput BlendedAttention.SeesASlotIfHalfOfItIsReal "
     "Sinkhorn.WithClosedColumnsIsTheProblemWithoutThem"},
    {35, "rows with nothing to see are 0",
     "BucketedAttention.PaddedQueriesAndRowsWithoutKeysAreZero "
     "Softmax.OfNothingAllowedIsZeroAndMinusInfinityWithoutANaN"},
    {36, "local heads, both ways", "LocalHeads.AreDenseAttentionUnderAMask"},
    {37, "local positions are whole numbers",
     "LocalHeads.KeepTheirOrderInBf16FarOut LeakCheck.RoundedPositionsLeakFrom256On"},
    {38, "all heads local, or none", "Parity.AgreesOnEveryFixture BucketedAttention.EqualsTheComposedForm"},
    {39, "dropouts of attention and feed-forward",
     "Dropouts.ActInTrainingOnlyAndFollowTheirStream Dropout.KeepsWhatItsMaskSays"},
    {40, "feed-forward, plain and gated",
     "ModuleGradients.FeedForwardPlainGatedAndChunked VectorMath.KnowsTheNormalDistribution"},
    {41, "feed-forward in chunks", "FeedForward.InUnevenChunksIsTheSame"},
    {42, "cross-attention of unequal lengths and buckets",
     "Parity.AgreesOnEveryFixture ModuleGradients.CrossAttention"},
    {43, "a missing context mask is all real", "EncoderDecoder.WithoutAContextMaskAllOfTheContextIsReal"},
    {44, "context projection, or none", "ModuleGradients.CrossAttention ModelConfig.RefusedCombinationsSayWhy"},
    {45, "a causal decoder routes its context without the future",
     "InDtype/Properties.P1NoOutputDependsOnTheFuture Temperature.IsHonouredInEveryTopK"},
    {46, "tied weights", "WeightTie.SharesModulesButNotNorms Parity.AgreesOnEveryFixture"},
    {47, "layer dropout",
     "LayerDropout.SkipsBlocksInTrainingOnlyAndKeepsOne "
     "DeviceModel.AGraphLeavesOutTheLayersThatAStepSkips"},
    {48, "product keys", "ProductKeys.EqualASearchOfAllSums ProductKeyMemory.ReadsTheBestValuesOfEachHead"},
    {49, "their norm keeps tokens apart",
     "ProductKeyMemory.ATokenReadsForItselfAlone InDtype/Properties.P1NoOutputDependsOnTheFuture"},
    {50, "parameter groups", "ParameterGroups.HoldEveryParameterOnce Trainer.MemoryValuesLearnAtTheirOwnRate"},
    {51, "memory layers count from 1", "ModelConfig.RefusedCombinationsSayWhy ModelConfig.DerivedNumbers"},
    {52, "reversible: pairs in, sum out",
     "Reversible.P4GradientsEqualThoseOfThePlainTape AllOps/GradientOf.AgreesWithCentralDifferences"},
    {53, "reversible gradients, replayed noise, context once",
     "Reversible.P4GradientsEqualThoseOfThePlainTape Reversible.RecomputationDrawsTheSameMasksAndMakesTheSamePicks "
     "Reversible.EvaluationCanBeDifferentiated EncoderDecoder.TheEncoderIsWalkedBackOnce"},
    {54, "reversible memory", "Reversible.PeakMemoryDoesNotGrowWithDepth"},
    {55, "padding to whole buckets, left, right, context, fixed",
     "Parity.AgreesOnEveryFixture SimpleSortNet.LooksBothWaysOverOneLengthOnly Of/Example.RunsAtAnEighthOfItsSize "
     "EncoderDecoder.TheEncoderIsWalkedBackOnce"},
    {56, "autoregressive loss", "AutoregressiveLoss.*"},
    {57, "random truncation", "RandomTruncation.*"},
    {58, "sequences of unequal length",
     "LanguageModel.PaddedOnTheRightGivesTheLogitsOfEachSequenceAlone Generate.RaggedRowsAreWhatEachRowIsAlone"},
    {59, "sampling", "Sample.*"},
    {60, "generation: ends, prompts, a full window",
     "Generate.FinishedRowsStayFinished Generate.DropsTheOldestHalfInWholeBucketsWhenFull Generate.RefusesBadPrompts"},
    {61, "incremental decoding",
     "Of/DecodedLogits.* Generate.RunsAFullForwardOnlyWhereTheWindowSlides GenerateEverything.*"},
    {62, "initialisation", "Initialisation.HasTheMomentsOfThePublishedPackage ProductKeyMemory.StartsAsDescribed"},
    {63, "unknown options are errors", "ModelConfig.JsonOfOthers Settings.WrongFilesNameTheLine"},
    {64, "tasks with known answers",
     "TaskReport.ModelsLearnToCopyAndToRepeatTwice TaskReport.PresetsLearnTheirTask Trainer.OverfitsOneBatch"},
    {65, "attention in groups of heads",
     "HeadGroups.* Reversible.HeadsInGroupsHaveTheGradientsOfAllAtOnce Reversible.TheHeadsAreThereInGroups "
     "Reversible.AnObserverSeesAllHeadsAtOnce MemoryBudget.IsWithinATenthOfThePoolsPeak "
     "ModelConfig.RefusedCombinationsSayWhy Train.ResumingMayComputeTheHeadsInOtherGroups "
     "EveryNth.TakesPiecesInTheirOrder EveryNth.AddsToAParametersGradientInPlace"},
};

/// "Suite" and "Suite.Test" of every test there is; instances of parameterised tests without their parameter.
std::set<std::string> existing() {
  std::set<std::string> names;
  const auto& unit = *::testing::UnitTest::GetInstance();
  for (int i = 0; i < unit.total_test_suite_count(); ++i) {
    const auto& suite = *unit.GetTestSuite(i);
    names.insert(suite.name());
    for (int j = 0; j < suite.total_test_count(); ++j) {
      const std::string test = suite.GetTestInfo(j)->name();
      names.insert(std::string(suite.name()) + "." + test.substr(0, test.find('/')));
    }
  }
  return names;
}

/// What is wrong with a row: tests that do not exist, or none at all.
std::string fault(const Row& row, const std::set<std::string>& names) {
  std::istringstream words(row.tests);
  std::string name, missing;
  int count = 0;
  while (words >> name) {
    ++count;
    if (name.ends_with(".*")) name.resize(name.size() - 2);
    if (!names.contains(name)) missing += " " + name;
  }
  return count == 0 ? "no test" : missing.empty() ? "" : "there is no" + missing;
}

TEST(Checklist, EveryRowIsShownByTestsThatExist) {
  const std::set<std::string> names = existing();
  ASSERT_EQ(rows.size(), 65u);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].number, int(i) + 1);
    EXPECT_EQ(fault(rows[i], names), "") << rows[i].number << ": " << rows[i].feature;
  }
}

TEST(Checklist, AMissingTestIsNoticed) {
  const std::set<std::string> names = existing();
  EXPECT_EQ(fault({1, "", "Checklist.AMissingTestIsNoticed"}, names), "");
  EXPECT_EQ(fault({1, "", "Checklist.*"}, names), "");
  EXPECT_NE(fault({1, "", "Checklist.NoSuchTest"}, names), "");
  EXPECT_NE(fault({1, "", "NoSuchSuite.*"}, names), "");
  EXPECT_NE(fault({1, "", ""}, names), "");
}

}  // namespace
